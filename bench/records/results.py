"""Everything that a run's folder holds, read once: what reports, comparisons, gates and baselines are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pandas as pd

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.records import measurements
from manifold_bench.bench.records.provenance import stored_provenance
from manifold_bench.bench.records.schema import PROBE, PROBED
from manifold_bench.bench.records.store import Entry, Store, distinct_kernels, key_in
from manifold_bench.bench.text import eps_text, norm_text

Cell = tuple[str, str, str, str, float]
"""Data set, defense, attack, norm, ε."""


CELL_COLUMNS = ("dataset", "defense", "attack", "norm", "eps")


def cell_text(cell: Cell) -> str:
    """`mnist5k / inc / pgd L∞ ε = 0.1`; a clean cell has neither norm nor ε."""
    dataset, defense, attack, norm, eps = cell
    strength = "" if norm == "none" else f" {norm_text(norm)} ε = {eps_text(eps)}"
    return f"{dataset} / {defense} / {attack}{strength}"


@dataclass(frozen=True)
class Results:
    """The results of a run.

    records: rows of `records.schema` with their job's `key` as a further column. probes: the same of the diagnosis' own
    attacks, which no figure, table or comparison is taken over. identities, index, kernels: by key, of both: what the
    result depends on, what the plan knew of the job, and what computed it (`running.kernels`; not in old records).
    measurements, inspections: stored values, of the matrix and of the diagnosis. run: run.json, {} where there is none.
    missing: files that the index names and that are not there.
    """

    folder: Path
    records: pd.DataFrame
    probes: pd.DataFrame
    identities: dict[str, dict[str, Any]]
    index: dict[str, Entry] = field(default_factory=dict)
    kernels: dict[str, dict[str, Any]] = field(default_factory=dict)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    inspections: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Reads a run's folder; raises InputError where there are no records or a file is damaged."""
        store = Store(folder)
        if not store.folder.is_dir():
            raise InputError(f"{folder}: no records here; a run's folder holds records/*.parquet")
        entries = store.index()
        there = {key_in(entry.file): entry for entry in entries if (store.folder / entry.file).exists()}
        stored = {key: store.contents(store.folder / entry.file) for key, entry in there.items()}
        frames = [one.rows.assign(key=key) for key, one in stored.items()]
        rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"kind": pd.Series(dtype="string")})
        probed = rows["kind"] == PROBED
        if probed.all():
            raise InputError(f"{store.folder}: no records here yet")
        measured = measurements.load(folder)
        return cls(
            folder=folder,
            records=rows[~probed].reset_index(drop=True),
            probes=rows[probed].reset_index(drop=True),
            identities={key: one.identity for key, one in stored.items()},
            index=there,
            kernels={key: one.kernels for key, one in stored.items() if one.kernels is not None},
            measurements=[one for one in measured if not one["measurement"].startswith(PROBE)],
            inspections=[one for one in measured if one["measurement"].startswith(PROBE)],
            run=stored_provenance(folder),
            missing=[entry.file for entry in entries if key_in(entry.file) not in there],
        )

    @cached_property
    def cells(self) -> dict[Cell, pd.DataFrame]:
        """The rows of each cell; raises InputError where a cell is there twice."""
        cells = {cast(Cell, cell): rows for cell, rows in self.records.groupby(list(CELL_COLUMNS))}
        for cell, rows in cells.items():
            for seed, keys in rows.groupby("seed")["key"].unique().items():
                if len(keys) > 1:
                    raise InputError(
                        f"{self.folder}: {cell_text(cell)}, seed {seed}, is there with several keys: "
                        f"{', '.join(keys)}; delete the files of all but one, or run the matrix again"
                    )
        return cells

    def identity(self, cell: Cell) -> dict[str, Any]:
        """The identity of the job that a cell came from."""
        return self.identities[self.cells[cell]["key"].iloc[0]]

    def status(self, cell: Cell) -> tuple[str, str]:
        """The cell's status (ok, failed or skipped) and the reason for it."""
        first = self.cells[cell].sort_values("status").iloc[0]  # failed before ok
        return str(first["status"]), str(first["reason"])

    @property
    def states(self) -> dict[str, str]:
        """The status of each job (ok, failed or skipped), by key."""
        rows = pd.concat([frame[["key", "status"]] for frame in (self.records, self.probes)])
        return dict(rows.drop_duplicates("key").itertuples(index=False))

    @property
    def distinct_kernels(self) -> list[dict[str, Any]]:
        """Each description of kernels in the records, once: see `store.distinct_kernels`."""
        return distinct_kernels(self.kernels.values())
