"""Runs calls in parallel processes on this machine. A crash, a hang or a kill costs one call and no other."""

from __future__ import annotations

import itertools
import os
import pickle
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from manifold_bench.bench.running.engines.calls import Call, CallQueue, Outcome, PackedCall, Urgency, pack
from manifold_bench.bench.running.environment import choose_kernels

if TYPE_CHECKING:
    from manifold_bench.bench.running.engines.template import Ending

TRIES = 3
"""Templates that a call may lose before it counts as failed: it may be what brings them down."""


def usable_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalEngine:
    """Runs each call in a process of its own, with one thread: the same sums however many run at once.

    The processes are forked from a `template`, which starts with the engine and is replaced if it is lost.
    """

    def __init__(self, workers: int) -> None:
        choose_kernels()  # the template inherits the environment
        self.workers = workers
        self._numbers = itertools.count()
        self._start_template()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop_template()

    def _start_template(self) -> None:
        mine, theirs = socket.socketpair()
        start = (
            f"import sys; sys.path[:] = {sys.path!r}; from {__package__}.template import main; main({theirs.fileno()})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", start], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )  # of its own session, so that what is typed at a terminal reaches the command alone
        theirs.close()
        self._template = Connection(mine.detach())

    def _stop_template(self) -> None:
        """Close the connection: the template kills what still runs and ends."""
        self._template.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, calls: Iterable[Call], urgency: Urgency | None = None) -> Iterator[Outcome]:
        """Run the calls as workers become free; see `Engine.run`."""
        waiting = CallQueue(calls, urgency)
        running: dict[int, Call] = {}
        lost: Counter[Any] = Counter()
        while waiting or running:
            self._start_ready(waiting, running)
            ending = self._next_ending()
            if ending is None:
                lost.update(call.id for call in running.values())
                outcomes = [
                    Outcome(call.id, failure=f"its process died, {TRIES} times")
                    for call in running.values()
                    if lost[call.id] >= TRIES
                ]
                for call in running.values():
                    if lost[call.id] < TRIES:
                        waiting.put_back(call)
                running.clear()
            elif (call_ended := running.pop(ending.number, None)) is None:
                continue  # of a run that was broken off
            else:
                outcomes = [_outcome(call_ended.id, ending)]
            for outcome in outcomes:
                waiting.mark_finished(outcome.id)
            self._start_ready(waiting, running)  # no worker waits for what is done with outcomes
            yield from outcomes

    def run_one(self, packed: PackedCall) -> Outcome:
        """Run a packed call and wait for it."""
        for _ in range(TRIES):
            self._start(packed)
            if (ending := self._next_ending()) is not None:
                return _outcome(0, ending)
        return Outcome(0, failure=f"its process died, {TRIES} times")

    def _start_ready(self, waiting: CallQueue, running: dict[int, Call]) -> None:
        """Hand calls to the template until each worker has one."""
        for call in waiting.pop(self.workers - len(running)):
            running[self._start(pack(call))] = call

    def _start(self, packed: PackedCall) -> int:
        number = next(self._numbers)
        with suppress(OSError):  # the template may be lost, as the next reading tells
            self._template.send((number, packed))
        return number

    def _next_ending(self) -> Ending | None:
        """Wait for the next ending; None where the template was lost, and with it all that ran."""
        try:
            return self._template.recv()
        except (EOFError, OSError):
            self._stop_template()
            self._start_template()
            return None


def _outcome(id: Any, ending: Ending) -> Outcome:
    if ending.answer is None:
        return Outcome(id, failure=ending.failure)
    return Outcome(id, result=pickle.loads(ending.answer))
