"""Everything that a run's folder holds, read once: what reports, comparisons, gates and baselines are made from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, cast

import pandas as pd
from pydantic import BaseModel, Field

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.records import measurements
from manifold_bench.bench.records.files import STRICT, Name, Positive, Whole, parsed
from manifold_bench.bench.records.provenance import KernelsPart, stored_provenance
from manifold_bench.bench.records.schema import IMAGE_COLUMNS, PROBE, PROBED, contradiction
from manifold_bench.bench.records.store import Contents, DamagedRecords, Entry, Store, distinct_kernels, key_in
from manifold_bench.bench.text import eps_text, norm_text
from manifold_bench.defenses.identity import JsonObject

Cell = tuple[str, str, str, str, float]
"""Data set, defense, attack, norm, ε."""


CELL_COLUMNS = ("dataset", "defense", "attack", "norm", "eps")


def cell_text(cell: Cell) -> str:
    """`mnist5k / inc / pgd L∞ ε = 0.1`; a clean cell has neither norm nor ε."""
    dataset, defense, attack, norm, eps = cell
    strength = "" if norm == "none" else f" {norm_text(norm)} ε = {eps_text(eps)}"
    return f"{dataset} / {defense} / {attack}{strength}"


class _System(BaseModel):
    """What identities say of a defense or an attack, as far as it is shown."""

    model_config = STRICT
    label: Name
    name: Name
    version: Whole | str
    parameters: JsonObject
    weights_sha256: str | None = None


class _Dataset(BaseModel):
    model_config = STRICT
    name: Name


class _Identity(BaseModel):
    """The identity of a job, as far as it is read again."""

    model_config = STRICT
    dataset: _Dataset
    defense: _System
    attack: _System
    eps: Annotated[list[Annotated[float, Field(ge=0, strict=False)]], Field(min_length=1)]
    ladder: bool
    seed: Whole
    protocol: Name
    shape: tuple[Positive, Positive, Positive]
    num_classes: Positive


def _check_identity(stored: Contents, path: Path) -> None:
    """Raises InputError where a record file says of itself what cannot be, or its images are not of its shape."""
    try:
        identity = parsed(json.dumps(stored.identity).encode(), _Identity)
        if stored.kernels is not None:
            parsed(json.dumps(stored.kernels).encode(), KernelsPart)
        size = math.prod(identity.shape)
        for column in stored.rows.columns.intersection(list(IMAGE_COLUMNS)):
            images = stored.rows[column].dropna()
            if not all(isinstance(image, bytes) and len(image) in (size, 4 * size) for image in images):
                raise ValueError(f"{column}: not images of shape {list(identity.shape)}")
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run again") from error


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
    identities: dict[str, JsonObject]
    index: dict[str, Entry] = field(default_factory=dict)
    kernels: dict[str, JsonObject] = field(default_factory=dict)
    measurements: list[JsonObject] = field(default_factory=list)
    inspections: list[JsonObject] = field(default_factory=list)
    run: JsonObject = field(default_factory=dict)
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
        for key, one in stored.items():
            _check_identity(one, store.folder / there[key].file)
        frames = [one.rows.assign(key=key) for key, one in stored.items()]
        rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"kind": pd.Series(dtype="string")})
        if len(rows) and (found := contradiction(rows)):
            file = store.folder / there[str(rows["key"].iloc[found.row])].file
            raise DamagedRecords(f"{file}: damaged ({found.fault}); delete it and run again")
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

    def identity(self, cell: Cell) -> JsonObject:
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
    def distinct_kernels(self) -> list[JsonObject]:
        """Each description of kernels in the records, once: see `store.distinct_kernels`."""
        return distinct_kernels(self.kernels.values())
