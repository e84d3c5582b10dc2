"""Runs calls in parallel processes on this machine. A crash, a hang or a kill costs one call and no other."""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress

import psutil

from manifold_bench.bench.running.engines.answers import Ending, ending
from manifold_bench.bench.running.engines.calls import Call, CallQueue, Id, Outcome, PackedCall, Urgency, pack
from manifold_bench.bench.running.engines.fork_server import start_template
from manifold_bench.bench.running.engines.processes import Method, await_message, end
from manifold_bench.bench.running.environment import choose_kernels

TRIES = 3
"""Number of lost templates after which a call counts as failed, because it may be the cause."""

GRACE_SECONDS = 20.0
"""Seconds that a template has to kill its calls."""


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalEngine:
    """Runs each call in a separate process with one thread, so that results do not depend on the number of workers.

    The processes are forked from a `template`, which starts with the engine and is replaced if it is lost.
    """

    def __init__(self, workers: int, method: Method = "fork" if sys.platform == "linux" else "spawn") -> None:
        """method: how the template starts processes; outside Linux, system libraries do not survive a fork."""
        choose_kernels()  # the template inherits the environment
        self.workers = workers
        self._method = method
        self._numbers = itertools.count()
        self._open: set[int] = set()
        """Numbers of the calls that have started and not ended."""
        self._start_template()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop_template()

    def _start_template(self) -> None:
        self._template, self._process = start_template(self._method)

    def _stop_template(self) -> None:
        """End the template, which kills all running calls once the connection is closed."""
        self._template.close()
        end(self._process, GRACE_SECONDS if self._open else 0)

    def run(self, calls: Iterable[Call[Id]], urgency: Urgency[Id] | None = None) -> Iterator[Outcome[Id]]:
        """Run the calls as workers become free; see `Engine.run`."""
        waiting = CallQueue(calls, urgency)
        running: dict[int, Call[Id]] = {}
        lost: Counter[Id] = Counter()  # calls that were running when a template was lost, and have not ended since
        while waiting or running:
            self._start_ready(waiting, running, bool(lost))
            ended = self._next_ending()
            outcomes = []
            if ended is None:
                for call in running.values():
                    lost[call.id] += 1
                    if lost[call.id] < TRIES:
                        waiting.put_back(call)
                    else:
                        outcomes.append(Outcome(call.id, failure=f"it took other processes with it, {TRIES} times"))
                running.clear()
            elif ended.number in running:  # else it belongs to a run that was interrupted
                outcomes.append(_outcome(running.pop(ended.number).id, ended))
            for outcome in outcomes:
                waiting.mark_finished(outcome.id)
                del lost[outcome.id]
            self._start_ready(waiting, running, bool(lost))  # before the outcomes are used, so that no worker waits
            yield from outcomes

    def run_one(self, packed: PackedCall) -> Outcome[int]:
        """Run a packed call and wait for it."""
        for _ in range(TRIES):
            self._start(packed)
            if (ended := self._next_ending()) is not None:
                return _outcome(0, ended)
        return Outcome(0, failure=f"it took other processes with it, {TRIES} times")

    def _start_ready(self, waiting: CallQueue[Id], running: dict[int, Call[Id]], alone: bool) -> None:
        """Send calls to the template until each worker has one; alone: one at a time, to find the one that kills it."""
        for call in waiting.pop((1 if alone else self.workers) - len(running)):
            running[self._start(pack(call))] = call

    def _start(self, packed: PackedCall) -> int:
        number = next(self._numbers)
        self._open.add(number)
        with suppress(OSError):  # the template may be lost, which the next read notices
            self._template.send((number, packed))
        return number

    def _next_ending(self) -> Ending | None:
        """Wait for the next ending; None if the template was lost, with all running calls."""
        try:
            await_message(self._template, self._process)
            ended = ending(self._template.recv_bytes())
        except (EOFError, OSError, psutil.Error):
            self._open.clear()
            self._stop_template()
            self._start_template()
            return None
        self._open.discard(ended.number)
        return ended


def _outcome(id: Id, ended: Ending) -> Outcome[Id]:
    return Outcome(id, ended.result, ended.failure, ended.memory)
