"""The objects that all stages of a run share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.board import Board
from manifold_bench.bench.running.engines.calls import Call, Engine, Outcome, Urgency


@dataclass(frozen=True)
class Session:
    """A run's folder, the engine that runs its calls, and the board that shows its progress.

    upload: function that is called after each outcome, to copy new files of the folder to its URL.
    """

    folder: Path
    engine: Engine
    board: Board
    upload: Callable[[], None] = lambda: None

    @property
    def store(self) -> Store:
        return Store(self.folder)

    def run(self, calls: Iterable[Call], urgency: Urgency | None = None) -> Iterator[Outcome]:
        """Run calls on the engine; see `Engine.run`."""
        for outcome in self.engine.run(calls, urgency):
            yield outcome
            self.upload()
