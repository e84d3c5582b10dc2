"""Runs calls one after another in this process: for models and data that only this process has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manifold_bench.bench.running.engines.calls import Call, CallQueue, Outcome, Urgency
from manifold_bench.defenses.errors import one_line


class SerialEngine:
    """One call at a time, in this process. Nothing protects one call from another, and no timeout applies."""

    workers = 1

    def run(self, calls: Iterable[Call], urgency: Urgency | None = None) -> Iterator[Outcome]:
        """Run the calls; see `Engine.run`."""
        waiting = CallQueue(calls, urgency)
        while waiting:
            (call,) = waiting.pop(1)
            try:
                outcome = Outcome(call.id, result=call.function(*call.arguments))
            except Exception as error:
                outcome = Outcome(call.id, failure=one_line(error))
            waiting.mark_finished(call.id)
            yield outcome
