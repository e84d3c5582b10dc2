"""The template: a process that imports the modules that calls need, runs nothing, and forks a child for each call.

It reads calls from the engine's process and sends back how they ended. A child inherits imported modules and loaded
data, but no effect of another call. Processes that a call leaves running are killed when it ends.
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait

import psutil

from manifold_bench.bench.running import job, measuring, training  # noqa: F401 - imported here once for all children
from manifold_bench.bench.running.engines.answers import AnswerPipe, Ending
from manifold_bench.bench.running.engines.calls import PackedCall, run_packed
from manifold_bench.bench.running.engines.channel import Channel, Partner
from manifold_bench.bench.running.engines.processes import (
    Method,
    Watched,
    end_with_parent,
    prepare_process,
    start_process,
)
from manifold_bench.defenses.errors import one_line

RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of the unit in which the system counts memory."""

GRACE_SECONDS = 10.0
"""Seconds that a call may take to end after its answer, because libraries clean up."""


@dataclass
class Running:
    """A running call. answer: pipe of its answer; None after the answer, or once the call has closed it."""

    number: int
    timeout: float | None
    process: Watched
    answer: AnswerPipe | None
    deadline: float
    ending: Ending | None = None

    def read(self) -> None:
        """Read what has arrived of its answer."""
        while self.answer is not None and self.answer.connection.poll():
            with suppress(EOFError):  # then the exit of its process says how it ended
                self.ending = self.answer.read()
                if self.ending is None:
                    continue
                self.deadline = time.monotonic() + GRACE_SECONDS
            self.close()

    def close(self) -> None:
        """Close the pipe of the answer."""
        if self.answer is not None:
            self.answer.connection.close()
            self.answer = None


def main(engine: str, method: Method) -> None:
    """Run the template process: start the jobs that the engine sends, until the engine has ended.

    engine: file descriptor of the socket to the engine, as text. method: how processes of jobs are started.
    """
    prepare_process()
    template = Template(Connection(int(engine)), method)
    try:
        template.serve()
    finally:
        template.kill_all()


class Template:
    """Starts calls as children and watches them. engine: connection that receives calls and sends their endings."""

    def __init__(self, engine: Connection, method: Method) -> None:
        self._engine, self._method = engine, method
        self._running: dict[int, Running] = {}
        self._prepared: set[bytes] = set()

    def serve(self) -> None:
        """Start the calls that the engine sends, and report those that end, until the engine has ended."""
        while True:
            running = list(self._running.values())
            deadline = min((call.deadline for call in running), default=math.inf)
            ready = wait(
                [self._engine, *self._answers, *(call.process.exit for call in running)],
                None if math.isinf(deadline) else max(0.0, deadline - time.monotonic()),
            )
            for call in running:
                ended = call.process.exit in ready
                call.read()
                if ended or time.monotonic() >= call.deadline:
                    self._end(call, ended)
            if self._engine in ready:
                try:
                    number, packed = self._engine.recv()
                except (EOFError, OSError):
                    return
                self._start(number, packed)

    def _start(self, number: int, packed: PackedCall) -> None:
        self._prepare(packed)
        deadline = math.inf if packed.timeout is None else time.monotonic() + packed.timeout
        mine, theirs = Pipe(duplex=False)
        inherited = (self._engine, mine, *self._answers) if self._method == "fork" else ()
        process = start_process(self._method, run_call, (theirs, number, packed, os.getpid(), inherited, self._method))
        theirs.close()
        self._running[number] = Running(number, packed.timeout, process, AnswerPipe(mine, number), deadline)

    @property
    def _answers(self) -> list[Connection]:
        """The pipes of calls that have not answered yet."""
        return [call.answer.connection for call in self._running.values() if call.answer is not None]

    def _prepare(self, packed: PackedCall) -> None:
        """Import modules and load data of this project for all children."""
        for name in packed.modules:
            importlib.import_module(name)
        if packed.prepare is not None and packed.prepare not in self._prepared:
            self._prepared.add(packed.prepare)
            with suppress(Exception):  # the call itself raises it again, and fails with the reason
                run_packed(packed.prepare, packed.moved)

    def _end(self, call: Running, ended: bool) -> None:
        """Report how a call ended, and kill the processes that it leaves."""
        del self._running[call.number]
        call.process.kill()
        late = f"it took more than {call.timeout or GRACE_SECONDS:g} s and was stopped"
        failure = call.process.ending() if ended else late
        call.close()
        self._kill_orphans()
        with suppress(BrokenPipeError):  # the engine has ended: the next look at it says so
            self._engine.send_bytes((call.ending or Ending(call.number, failure=failure)).line())

    def _kill_orphans(self) -> None:
        """Kill the children that are not calls: processes that a call left become children of this process."""
        if self._method == "fork":
            known = {call.process.pid for call in self._running.values()}
            _kill(child for child in psutil.Process().children() if child.pid not in known)

    def kill_all(self) -> None:
        """Kill every call and all processes that it has started."""
        for call in self._running.values():
            call.process.kill()
        self._running = {}
        self._kill_orphans()


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        try:
            for one in (process, *process.children(recursive=True)):
                one.kill()
            os.waitpid(process.pid, os.WNOHANG)
        except (psutil.Error, ChildProcessError):  # gone meanwhile
            continue


def run_call(
    answer: Connection, number: int, packed: PackedCall, parent: int, inherited: tuple[Connection, ...], method: Method
) -> None:
    """Run a call in this process, which has just been started, and its partner in another one.

    parent: process id of the template. inherited: connections of the template, which this process closes. method: as in
    `main`.
    """
    for one in inherited:
        one.close()
    os.setsid()
    prepare_process()
    end_with_parent(parent)
    partners: list[Partner] = []
    try:
        if packed.partner is not None:
            partners.append(_start_partner(packed.partner, packed, answer, method))
        result, failure = run_packed(packed.function, packed.moved, *partners), None
    except BaseException as error:  # it is a user's code: it may raise what ends a process
        result, failure = None, one_line(error)
    for partner in partners:
        partner.connection.close()
        partner.process.process.join(GRACE_SECONDS)
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    memory = sum(peaks) * RSS_UNIT
    with suppress(Exception):  # the other end is closed after a faulty answer, or the call has broken what is used here
        try:
            line = Ending(number, result, failure, memory).line()
        except Exception:  # as for a result that is no JSON data
            failure = f"its result, of type {type(result).__name__}, cannot be written as JSON data"
            line = Ending(number, failure=failure, memory=memory).line()
        while line:
            line = line[os.write(answer.fileno(), line) :]


def _start_partner(content: bytes, packed: PackedCall, answer: Connection, method: Method) -> Partner:
    """Start the partner before this process imports or loads anything for its call; return this end of the channel."""
    mine, theirs = Pipe()
    inherited = (mine, answer) if method == "fork" else ()
    process = start_process(method, run_partner, (theirs, inherited, content, packed.moved, os.getpid()))
    theirs.close()
    return Partner(mine, process)


def run_partner(
    own: Connection, inherited: tuple[Connection, ...], content: bytes, moved: tuple[tuple[str, str], ...], parent: int
) -> None:
    """Run the partner of a call in this process. inherited: connections of the call, which this process closes."""
    for one in inherited:
        one.close()
    prepare_process()
    end_with_parent(parent)
    channel = Channel(own)
    channel.serve(lambda: run_packed(content, moved, channel))
