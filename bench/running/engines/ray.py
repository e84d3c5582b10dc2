"""Runs calls on all machines of a Ray cluster: each call is a task, which a local engine with one worker runs there.

So timeouts, crashes and kills have the same effect as locally. The machines share no folder: files that a call reads
are copied to each machine once, and files that it writes come back with its outcome. Only this process writes to the
run's folder.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import logging
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

import ray
from ray import ObjectRef, ObjectRefGenerator
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.matrix import Needs
from manifold_bench.bench.records.log import Log
from manifold_bench.bench.running.engines.calls import Call, CallQueue, Id, Outcome, PackedCall, Urgency, pack
from manifold_bench.bench.running.engines.local import LocalEngine
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.files import atomic_write
from manifold_bench.defenses.identity import OWN, PROJECT

TRIES = 3
"""Number of machines that may be lost under a call before it counts as failed, because it may be the cause."""

LOG_SECONDS = 1.0
"""Seconds between two readings of a call's log."""

SECONDS = 5.0
"""Largest number of seconds between two checks for machines that joined or left."""


@dataclass(frozen=True)
class Started:
    """A machine's first message about a call: it has started."""

    machine: str
    node: str
    home: str
    code: str


@dataclass(frozen=True)
class LogLines:
    """A message with lines that a call has appended to its log."""

    lines: bytes


class Lost:
    """The machine of a call is lost, so that no message will follow."""


@dataclass(frozen=True)
class Finished:
    """The last message about a call. files: contents of the files that it wrote, by name, oldest first."""

    outcome: Outcome[int]
    files: dict[str, bytes] = field(default_factory=dict)


class RayEngine:
    """Runs calls on a running Ray cluster. most: largest number of calls at once; None: as many as there are CPUs."""

    def __init__(self, address: str | None, most: int | None) -> None:
        self.most = most
        if (address or "").startswith("ray://"):
            raise InputError(f"--address: {address} is for Ray clients; start the command on a machine of the cluster")
        try:
            ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            advice = "start one with `ray start --head`, or name one with --address HOST:PORT"
            where = address or "this machine"
            raise InputError(f"--engine ray: no cluster at {where} ({one_line(error)}); {advice}") from error
        self._task = ray.remote(max_retries=0, num_returns="streaming")(_work)
        self._homes: dict[str, str] = {}  # node → folder of this run there
        self._objects: dict[Path, ObjectRef] = {}  # contents of files, which are read once for all machines

    @property
    def workers(self) -> int:
        """`most`, or else the number of CPUs of the cluster now."""
        return self.most or max(1, int(ray.cluster_resources().get("CPU", 0)))

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        clear = ray.remote(max_retries=0, num_cpus=0)(_clear)
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        here = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node in alive}
        cleared = [clear.options(scheduling_strategy=here[n]).remote(h) for n, h in self._homes.items() if n in here]
        if cleared:
            ray.wait(cleared, num_returns=len(cleared), timeout=SECONDS)
        ray.shutdown()

    def run(self, calls: Iterable[Call[Id]], urgency: Urgency[Id] | None = None) -> Iterator[Outcome[Id]]:
        """Run the calls; yield outcomes as they come. A call whose machine is lost runs on another one.

        As many calls run as the cluster has CPUs, and as many again wait at the machines, so that none is idle. The
        others wait here, so that the most urgent starts first. Raises InputError if no machine is large enough for a
        call, or a machine has other code.
        """
        calls = list(calls)
        for needs in {call.needs for call in calls}:
            _check_size(needs)
        waiting = CallQueue(calls, urgency)
        running: dict[ObjectRefGenerator, Call[Id]] = {}
        lost: Counter[Id] = Counter()
        try:
            while waiting or running:
                for call in waiting.pop((self.most or 2 * self.workers) - len(running)):
                    running[self._start(call)] = call
                for task in ray.wait(list(running), num_returns=1, timeout=SECONDS)[0]:
                    call = running[task]
                    message = self._received(task, call)
                    if message is None:
                        continue
                    del running[task]
                    if isinstance(message, Lost):
                        lost[call.id] += 1
                        if lost[call.id] <= TRIES:
                            waiting.put_back(call)
                            continue
                        message = Outcome(call.id, failure=f"its machine was lost, {lost[call.id]} times")
                    waiting.mark_finished(call.id)
                    yield message
        finally:
            for task in running:
                ray.cancel(task, force=True)

    def _received(self, task: ObjectRefGenerator, call: Call[Id]) -> Lost | Outcome[Id] | None:
        """Return the outcome of a task, Lost, or None if it runs; raises InputError if a machine has other code."""
        try:
            message = ray.get(next(task))
        except (NodeDiedError, ObjectLostError):
            return Lost()
        except OutOfMemoryError:
            return Outcome(call.id, failure="its process was killed: its machine ran out of memory")
        except RayTaskError as error:
            return Outcome(call.id, failure=one_line(error.cause))
        except RayError as error:
            return Outcome(call.id, failure=f"its process died ({type(error).__name__})")
        if isinstance(message, Started):
            self._homes[message.node] = message.home
            if message.code != code():
                raise InputError(
                    f"--engine ray: machine {message.machine} has other code ({message.code}; here {code()}); install "
                    "the same version of this package, of Python, torch and numpy on every machine"
                )
            return None
        if isinstance(message, LogLines):
            assert call.log is not None
            Log(call.log).append(message.lines)
            return None
        return _write_files(call, message)

    def _start(self, call: Call[Id]) -> ObjectRefGenerator:
        """Give a call to Ray, and put files that it reads into Ray's object store, each file once."""
        reads = [path.absolute() for path in call.reads if path.exists()]
        for path in reads:
            if path not in self._objects:
                self._objects[path] = ray.put(_content(path))
        writes, log = (str(path.absolute()) if path else None for path in (call.writes, call.log))
        task = self._task.options(num_cpus=call.needs.cpus, num_gpus=call.needs.gpus, name=str(call.id))
        objects = [(str(path), self._objects[path]) for path in reads]
        return task.remote(pack(call), objects, writes, log)


def _check_size(needs: Needs) -> None:
    """Raise InputError if no machine of the cluster is large enough, because Ray would wait for one forever."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(r.get("CPU", 0) >= needs.cpus and r.get("GPU", 0) >= needs.gpus for r in there):
        largest = ", ".join(f"{r.get('CPU', 0):g} CPUs and {r.get('GPU', 0):g} GPUs" for r in there)
        raise InputError(
            f"--engine ray: no machine has the {needs.cpus:g} CPUs and {needs.gpus:g} GPUs that a job needs "
            f"(machines: {largest}); start a larger one, or lower `resources` in the matrix file"
        )


def _write_files(call: Call[Id], message: Finished) -> Outcome[Id]:
    """Write the files of a call on another machine to its folder here, atomically and in their order."""
    for name, content in message.files.items():
        assert call.writes is not None
        path = call.writes / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
    ended = message.outcome
    return Outcome(call.id, ended.result, ended.failure, ended.memory)


def _content(path: Path) -> dict[str, bytes]:
    """Return the contents of a file, or of every file of a folder, by their names below the path."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@cache
def code() -> str:
    """Return everything that results of a process depend on: a hash of this package's source, and versions."""
    digest = hashlib.sha256()
    for package in OWN:
        for path in sorted((PROJECT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes())
    libraries = " ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    return f"{digest.hexdigest()[:12]}, Python {'.'.join(platform.python_version_tuple()[:2])}, {libraries}"


def _work(
    call: PackedCall, reads: list[tuple[str, ObjectRef]], writes: str | None, log: str | None
) -> Iterator[Started | LogLines | Finished]:
    """Run a packed call as a Ray task, in a separate process. reads: paths with the objects of their contents."""
    home = _home()
    yield Started(platform.node(), ray.get_runtime_context().get_node_id(), str(home), code())
    with tempfile.TemporaryDirectory(dir=home) as own:
        moved = [(writes, own)] if writes else []
        if log and writes and Path(log).is_relative_to(writes):
            own_log = Path(own) / Path(log).relative_to(writes)
        else:
            own_log = Path(own) / ".log"
            moved += [(log, str(own_log))] if log else []
        for source, content_there in reads:
            target = _placed(home / "files" / source.lstrip("/"), content_there)
            if writes and Path(source).is_relative_to(writes):
                link = Path(own) / Path(source).relative_to(writes)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
            else:
                moved.append((source, str(target)))
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(_engine().run_one, dataclasses.replace(call, moved=tuple(moved)))
            start = 0
            while not wait([running], LOG_SECONDS).done or _lines(own_log, start):
                if lines := _lines(own_log, start):
                    start += len(lines)
                    yield LogLines(lines)
            outcome = running.result()
        files = {} if outcome.failure else _written(Path(own), own_log)
    yield Finished(outcome, files)


def _lines(path: Path, start: int) -> bytes:
    """Return the complete lines of a file from byte `start` on; nothing if there is no such file yet."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]


@cache
def _engine() -> LocalEngine:
    """Return the local engine of this process, with one worker."""
    return LocalEngine(1)


def _home() -> Path:
    """Return this machine's folder for this run."""
    context = ray.get_runtime_context()
    home = Path(tempfile.gettempdir()) / f"manifold-bench-{context.get_job_id()}-{context.get_node_id()}"
    home.mkdir(mode=0o700, exist_ok=True)
    return home


def _placed(target: Path, content: ObjectRef) -> Path:
    """Write the content of an object of Ray to `target`, unless it exists; return `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            draft = target.with_name(f".{target.name}.draft")
            for name, raw in ray.get(content).items():
                path = draft / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(raw)
            draft.replace(target)
    return target


def _written(folder: Path, log: Path) -> dict[str, bytes]:
    """Return the contents of the files below a folder by name, oldest first, without log, links and hidden drafts."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    files = [path for path in found if path != log and not path.name.startswith(".")]
    files.sort(key=lambda path: path.stat().st_ctime_ns)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _clear(home: str) -> None:
    shutil.rmtree(home, ignore_errors=True)
