"""Runs calls one after another in this process, for models and data that only this process has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from multiprocessing import Pipe
from threading import Thread

from manifold_bench.bench.errors import interruption
from manifold_bench.bench.planning.usercode import settings_kept
from manifold_bench.bench.running.engines.calls import Call, CallQueue, Id, Outcome, Urgency
from manifold_bench.bench.running.engines.channel import Channel
from manifold_bench.defenses.errors import one_line

END_SECONDS = 2.0
"""Seconds to wait for a partner after its call has ended; after an interrupt it may still be running."""


class SerialEngine:
    """Runs one call at a time in this process, without isolation of calls and without timeouts."""

    workers = 1

    def run(self, calls: Iterable[Call[Id]], urgency: Urgency[Id] | None = None) -> Iterator[Outcome[Id]]:
        """Run the calls; see `Engine.run`."""
        waiting = CallQueue(calls, urgency)
        while waiting:
            (call,) = waiting.pop(1)
            try:
                with settings_kept():
                    outcome = Outcome(call.id, result=run_here(call))
            except interruption():
                raise
            except BaseException as error:  # it is a user's code: it may raise what ends a process
                outcome = Outcome(call.id, failure=one_line(error))
            waiting.mark_finished(call.id)
            yield outcome


def run_here(call: Call[Id]) -> object:
    """Run a call in this thread, and its partner in another one; return its result."""
    if call.partner is None:
        return call.function(*call.arguments)
    function, arguments = call.partner
    mine, theirs = Pipe()
    channel = Channel(theirs)
    partner = Thread(target=channel.serve, args=(lambda: function(*arguments, channel),), daemon=True)
    partner.start()
    try:
        return call.function(*call.arguments, Channel(mine))
    finally:
        mine.close()
        partner.join(END_SECONDS)
