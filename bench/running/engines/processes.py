"""Processes of this machine: how one begins, how it is watched, and how it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import torch

from manifold_bench.bench.planning.usercode import limit_time

Method = Literal["fork", "spawn"]
"""How a process starts: as a copy of the one that starts it, or afresh."""


SUBREAPER, DEATH_SIGNAL = 36, 1
"""PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG of Linux' prctl."""


class Watched:
    """A process that was started. exit: becomes readable when it ends, whoever else holds its open files."""

    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        assert process.pid is not None
        self.pid: int = process.pid
        self._pidfd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None

    @property
    def exit(self) -> int:
        return self.process.sentinel if self._pidfd is None else self._pidfd

    def kill(self) -> None:
        """Kill it and every process of its group, and release what the system keeps for it."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has not made its group yet, or is gone
            self.process.kill()
        self.process.join(timeout=5)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def ending(self) -> str:
        """How it ended, in words, once it has."""
        self.process.join(timeout=5)
        hint = " (killed: out of memory?)" if self.process.exitcode == -signal.SIGKILL else ""
        return f"its process died with exit code {self.process.exitcode}{hint}"


def start_process(method: Method, function: Callable[..., None], arguments: tuple[Any, ...]) -> Watched:
    """Start a process that runs a module-level function."""
    context = get_context("fork") if method == "fork" else get_context("spawn")
    process = context.Process(target=function, args=arguments)
    process.start()
    return Watched(process)


def prepare_process() -> None:
    """Set up a process that computes: one thread, and the orphans of its children become its children (on Linux).

    Whoever starts it watches its time.
    """
    limit_time(0)
    torch.set_num_threads(1)
    keep_freed_memory()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def end_with_parent(parent: int) -> None:
    """Have this process killed as soon as its parent, which has that id, is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it was gone before
            os._exit(1)
    else:
        threading.Thread(target=watch, daemon=True).start()


def keep_freed_memory() -> None:
    """Has glibc keep what tensors free for the next ones: handing it back to the kernel costs a page fault per 4 KiB.

    By default every activation beyond 128 KiB is mapped anew in each step: a quarter of an attack's time on a small
    network. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim, top_pad, map_threshold = -1, -2, -3  # M_… in malloc.h
    for parameter, size in ((trim, 1 << 30), (top_pad, 1 << 27), (map_threshold, 1 << 25)):
        mallopt(parameter, size)
