"""What the stages of a run work with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.board import Board
from manifold_bench.bench.running.engines.calls import Call, Engine, Outcome, Urgency


@dataclass(frozen=True)
class Session:
    """A run's folder, the engine that its calls run on, and the board that shows how far they are."""

    folder: Path
    engine: Engine
    board: Board

    @property
    def store(self) -> Store:
        return Store(self.folder)


@dataclass(frozen=True)
class UploadingEngine:
    """An engine; what an outcome has led to is uploaded before the next one is asked for."""

    engine: Engine
    upload: Callable[[], None]

    @property
    def workers(self) -> int:
        return self.engine.workers

    def run(self, calls: Iterable[Call], urgency: Urgency | None = None) -> Iterator[Outcome]:
        for outcome in self.engine.run(calls, urgency):
            yield outcome
            self.upload()
