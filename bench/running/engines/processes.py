"""Processes of this machine: starting them, watching them, and killing them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Literal

import psutil
import torch

from manifold_bench.bench.planning.usercode import limit_time

Method = Literal["fork", "spawn"]
"""How a process starts: as a copy of its parent (fork), or as a new interpreter (spawn)."""


SUBREAPER, DEATH_SIGNAL = 36, 1
"""PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG of Linux' prctl."""

LOOK_SECONDS = 5.0
"""Seconds between two checks of whether a process has been stopped."""


class Watched:
    """A child process. exit: file descriptor that becomes readable when the process ends."""

    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        assert process.pid is not None
        self.pid: int = process.pid
        self._pidfd: int | None = None
        with suppress(AttributeError, OSError):  # other systems, old kernels and some sandboxes have none
            self._pidfd = os.pidfd_open(self.pid)

    @property
    def exit(self) -> int:
        return self.process.sentinel if self._pidfd is None else self._pidfd

    def kill(self) -> None:
        """Kill the process and every process of its group, and release their resources."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # the group does not exist yet, or no longer
            self.process.kill()
        self.process.join(timeout=5)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def ending(self) -> str:
        """Return how the process ended, in words; wait up to 5 s for the end."""
        self.process.join(timeout=5)
        hint = " (killed: out of memory?)" if self.process.exitcode == -signal.SIGKILL else ""
        return f"its process died with exit code {self.process.exitcode}{hint}"


def start_process(method: Method, function: Callable[..., None], arguments: tuple[object, ...]) -> Watched:
    """Start a process that runs a module-level function."""
    context = get_context("fork") if method == "fork" else get_context("spawn")
    process = context.Process(target=function, args=arguments)
    process.start()
    return Watched(process)


def await_message(connection: Connection, process: psutil.Process) -> None:
    """Wait until a connection can be read, or its other end is closed. A process that was stopped is killed.

    process: the process at the other end.
    """
    while not connection.poll(LOOK_SECONDS):
        if process.status() == psutil.STATUS_STOPPED:  # a call has stopped it, and it would never continue
            process.kill()


def end(process: psutil.Process, seconds: float) -> None:
    """Wait until a process has ended, and kill it after that many seconds. It need not be a child of this one."""
    deadline = time.monotonic() + seconds
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:  # one that nobody waits for stays a zombie
            if time.monotonic() >= deadline:
                process.kill()
            time.sleep(0.005)
    if isinstance(process, psutil.Popen):
        process.wait()  # so that its own child is no zombie


def prepare_process() -> None:
    """Set up a process that computes: one thread, no time limit for users' code, since its parent watches the time.

    On Linux, orphans of its children become its children.
    """
    limit_time(0)
    torch.set_num_threads(1)
    keep_freed_memory()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def end_with_parent(parent: int) -> None:
    """Let this process be killed as soon as its parent, which has that id, has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # the parent had ended before
            os._exit(1)
    else:
        threading.Thread(target=watch, daemon=True).start()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for later tensors, because returning it to the kernel costs a page fault per 4 KiB.

    By default every activation above 128 KiB is mapped again in each step, which takes a quarter of an attack's time on
    a small network. Other C libraries are not changed.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim, top_pad, map_threshold = -1, -2, -3  # M_… in malloc.h
    for parameter, size in ((trim, 1 << 30), (top_pad, 1 << 27), (map_threshold, 1 << 25)):
        mallopt(parameter, size)
