"""Runs calls in parallel processes on this machine. A crash, a hang or a kill costs one call and no other."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, TimeoutError, wait
from multiprocessing import get_context
from typing import Any

from pebble import ProcessExpired, ProcessPool

from manifold_bench.bench.running.engines.calls import Call, CallQueue, Outcome, Urgency
from manifold_bench.bench.running.environment import choose_kernels
from manifold_bench.defenses.errors import one_line

REPLACEMENT_SECONDS = 5.0
"""A new worker process is certainly on its feet after that."""


class LocalEngine:
    """A pool of worker processes, one thread each: the same sums in the same order however many workers there are."""

    def __init__(self, workers: int) -> None:
        choose_kernels()  # the workers inherit the environment
        self.workers = workers
        self._replaced = -REPLACEMENT_SECONDS  # when a worker was lost last
        self._pool = ProcessPool(
            max_workers=workers, initializer=_start_worker, initargs=(os.getpid(),), context=get_context("spawn")
        )

    def __enter__(self) -> LocalEngine:
        self._pool.schedule(int)  # nothing: the workers start with the first call, and importing torch takes a while
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # A worker that replaces a dead one prints a traceback if the pool goes while it starts
        time.sleep(max(0.0, self._replaced + REPLACEMENT_SECONDS - time.monotonic()))
        if kind is None:
            self._pool.close()  # idle workers end by themselves, and clear away what libraries left in the system
        else:
            self._pool.stop()
        self._pool.join()

    def run(self, calls: Iterable[Call], urgency: Urgency | None = None) -> Iterator[Outcome]:
        """Run the calls as workers become free; see `Engine.run`."""
        waiting = CallQueue(calls, urgency)
        futures: dict[Any, Call] = {}
        while waiting or futures:
            self._schedule(waiting, futures)
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            outcomes = [self._outcome(futures.pop(future), future) for future in done]
            for outcome in outcomes:
                waiting.mark_finished(outcome.id)
            self._schedule(waiting, futures)  # no worker waits for what is done with outcomes
            yield from outcomes

    def _schedule(self, waiting: CallQueue, futures: dict[Any, Call]) -> None:
        """Hands calls to the workers until each has one."""
        for call in waiting.pop(self.workers - len(futures)):
            futures[self._pool.schedule(call.function, args=call.arguments, timeout=call.timeout)] = call

    def _outcome(self, call: Call, future: Any) -> Outcome:
        try:
            return Outcome(call.id, result=future.result())
        except TimeoutError:
            self._replaced = time.monotonic()
            return Outcome(call.id, failure=f"it took more than {call.timeout:g} s and was stopped")
        except ProcessExpired as error:
            self._replaced = time.monotonic()
            hint = " (killed: out of memory?)" if error.exitcode == -9 else ""
            return Outcome(call.id, failure=f"its process died with exit code {error.exitcode}{hint}")
        except Exception as error:
            return Outcome(call.id, failure=one_line(error))


def _start_worker(parent: int) -> None:
    """One thread per process, and no life without the parent: a killed run must not leave workers behind."""
    import torch  # late: only the workers compute

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    torch.set_num_threads(1)
    keep_freed_memory()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

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
