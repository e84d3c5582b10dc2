"""Runs calls in parallel processes on this machine. A crash, a hang or a kill costs one call and no other."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, TimeoutError, wait
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from pebble import ProcessExpired, ProcessPool

REPLACEMENT_SECONDS = 5.0
"""A new worker process is certainly on its feet after that."""


@dataclass(frozen=True)
class Call:
    """A function of the module level with its arguments, and how many seconds it may take (None: any number)."""

    id: Any
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    timeout: float | None


@dataclass(frozen=True)
class Outcome:
    """What came of a call: its result, or why there is none."""

    id: Any
    result: Any = None
    failure: str | None = None


class LocalEngine:
    """A pool of worker processes, one thread each: the same sums in the same order however many workers there are."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._replaced = -REPLACEMENT_SECONDS  # when a worker was lost last
        self._pool = ProcessPool(
            max_workers=workers, initializer=_start_worker, initargs=(os.getpid(),), context=get_context("spawn")
        )

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        # A worker that replaces a dead one prints a traceback if the pool goes while it starts
        time.sleep(max(0.0, self._replaced + REPLACEMENT_SECONDS - time.monotonic()))
        self._pool.stop()
        self._pool.join()

    def run(self, calls: Iterable[Call]) -> Iterator[Outcome]:
        """Runs the calls, in that order as workers become free; yields outcomes as they come."""
        futures: dict[Any, Call] = {
            self._pool.schedule(c.function, args=c.arguments, timeout=c.timeout): c for c in calls
        }
        while futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in done:
                call = futures.pop(future)
                try:
                    yield Outcome(call.id, result=future.result())
                except TimeoutError:
                    self._replaced = time.monotonic()
                    yield Outcome(call.id, failure=f"it took more than {call.timeout:g} s and was stopped")
                except ProcessExpired as error:
                    self._replaced = time.monotonic()
                    hint = " (killed: out of memory?)" if error.exitcode == -9 else ""
                    yield Outcome(call.id, failure=f"its process died with exit code {error.exitcode}{hint}")
                except Exception as error:
                    yield Outcome(call.id, failure=f"{type(error).__name__}: {error}".splitlines()[0])


def _start_worker(parent: int) -> None:
    """One thread per process, and no life without the parent: a killed run must not leave workers behind."""
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
