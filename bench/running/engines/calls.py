"""The interface of engines, which take calls and yield outcomes, and the queue that chooses the next call."""

from __future__ import annotations

import heapq
import io
import pickle
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pydantic import JsonValue

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.matrix import ONE_CPU, Needs
from manifold_bench.bench.planning.usercode import contained, settings_kept

Function = tuple[Callable[..., object], tuple[object, ...]]
"""A module-level function and its arguments."""

Id = TypeVar("Id", bound=Hashable)

Urgency = Callable[[Id], float | tuple[bool, float]]
"""Function from a call's id to its urgency, evaluated whenever a worker is free."""


@dataclass(frozen=True)
class Call(Generic[Id]):
    """A call of a module-level function in a separate process, with everything that an engine has to know about it.

    timeout: largest number of seconds, loading included; None: no limit.
    after: ids of calls of the same run that have to end first, with any outcome; ids that are not in the run are
    ignored.
    partner: function that runs in a second process at the same time. The call gets a `Partner` as its last argument,
    and the partner a `Channel` to the call.
    prepare: function of this project that loads data for many calls; it may run once for all of them.
    reads: files and folders that the call reads. writes: folder that it writes to. An engine with other machines copies
    the former to a machine and new files of the latter back, and changes the paths in the arguments accordingly. log:
    file to which the call only appends lines, which are passed on while it runs. needs: resources that it occupies.
    """

    id: Id
    function: Callable[..., object]
    arguments: tuple[object, ...]
    timeout: float | None
    after: tuple[Hashable, ...] = ()
    partner: Function | None = None
    prepare: Function | None = None
    reads: tuple[Path, ...] = ()
    writes: Path | None = None
    log: Path | None = None
    needs: Needs = ONE_CPU


@dataclass(frozen=True)
class Outcome(Generic[Id]):
    """The result of a call, or the reason of its failure. memory: largest number of resident bytes; 0 if unknown."""

    id: Id
    result: object = None
    failure: str | None = None
    memory: int = 0


class Engine(Protocol):
    """Runs calls, in parallel."""

    @property
    def workers(self) -> int:
        """Approximate number of calls that run at once."""

    def run(self, calls: Iterable[Call[Id]], urgency: Urgency[Id] | None = None) -> Iterator[Outcome[Id]]:
        """Run the calls, as many at once as there are workers; yield outcomes as they come.

        urgency: the call with the largest one starts first. None: calls start in their order.
        """


class CallQueue(Generic[Id]):
    """The calls of a run that have not started; a call is ready when all calls that it waits for have ended."""

    def __init__(self, calls: Iterable[Call[Id]], urgency: Urgency[Id] | None) -> None:
        self._calls = {call.id: call for call in calls}
        self._unfinished: set[Hashable] = set(self._calls)
        self._urgency = urgency

    def __bool__(self) -> bool:
        return bool(self._calls)

    def pop(self, most: int) -> list[Call[Id]]:
        """Remove and return the most urgent calls that are ready, at most `most`."""
        if most <= 0:
            return []
        ready = [call for call in self._calls.values() if self._unfinished.isdisjoint(call.after)]
        if urgency := self._urgency:
            ready = heapq.nlargest(most, ready, key=lambda call: urgency(call.id))
        for call in ready[:most]:
            del self._calls[call.id]
        return ready[:most]

    def put_back(self, call: Call[Id]) -> None:
        """Put back a call that was started and lost without its fault."""
        self._calls[call.id] = call

    def mark_finished(self, id: Id) -> None:
        """Make the calls that wait for that call ready."""
        self._unfinished.discard(id)


@dataclass(frozen=True)
class PackedCall:
    """A call as bytes, so that processes that only pass it on do not import the code that it runs.

    modules: modules of this project that it needs, which can be imported before it starts. moved: files and folders,
    each with its path on the machine where it runs.
    """

    function: bytes
    partner: bytes | None
    prepare: bytes | None
    timeout: float | None
    modules: tuple[str, ...]
    moved: tuple[tuple[str, str], ...] = ()


def pack(call: Call[Id]) -> PackedCall:
    """Pack a call, with marks on its paths. A call that cannot be packed becomes one that fails."""
    try:
        with contained("it cannot be sent to another process"):  # pickling runs a user's code
            return _packed(call)
    except InputError as error:
        return _packed(Call(call.id, _fail, (str(error),), call.timeout))


def _fail(reason: str) -> None:
    raise TypeError(reason)


def _packed(call: Call[Id]) -> PackedCall:
    modules: set[str] = set()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> str | None:
            if isinstance(obj, type) and obj.__module__.startswith("manifold_bench."):
                modules.add(obj.__module__)
            return str(obj.absolute()) if isinstance(obj, Path) else None

    def packed(function: Function | None) -> bytes | None:
        if function is None:
            return None
        buffer = io.BytesIO()
        Pickler(buffer).dump(function)
        return buffer.getvalue()

    function = packed((call.function, call.arguments))
    assert function is not None
    return PackedCall(function, packed(call.partner), packed(call.prepare), call.timeout, tuple(sorted(modules)))


def run_packed(content: bytes, moved: Sequence[tuple[str, str]], *more: object) -> JsonValue:
    """Run a packed function with further arguments after its own; return its result, which has to be JSON data.

    moved: files and folders with their paths on this machine; the first entry that concerns a path counts. Folders
    above a moved one are moved, too.
    """

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: str) -> Path:
            path = Path(pid)
            for source, target in moved:
                if path.is_relative_to(source):
                    return Path(target) / path.relative_to(source)
                if Path(source).is_relative_to(path):
                    return Path(target).parents[len(Path(source).relative_to(path).parts) - 1]
            return path

    with settings_kept():  # unpickling imports users' modules, which may change torch's defaults
        function, arguments = Unpickler(io.BytesIO(content)).load()
    return function(*arguments, *more)
