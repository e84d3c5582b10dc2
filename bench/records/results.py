"""The results of a run, read from its folder: the input of reports, comparisons, gates and baselines."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, cast

import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, Field

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.records import measurements
from manifold_bench.bench.records.files import STRICT, Name, Positive, Whole, parsed
from manifold_bench.bench.records.provenance import KernelsPart, stored_provenance
from manifold_bench.bench.records.schema import (
    CALIBRATION,
    CLEAN,
    IMAGE_COLUMNS,
    PROBE,
    PROBED,
    STORED,
    as_frame,
    contradiction,
)
from manifold_bench.bench.records.store import DamagedRecords, Entry, Store, Stored, distinct_kernels, key_in
from manifold_bench.bench.text import eps_text, norm_text
from manifold_bench.defenses.identity import JsonObject

Cell = tuple[str, str, str, str, float]
"""Data set, defense, attack, norm, ε."""

CELL_COLUMNS = ("dataset", "defense", "attack", "norm", "eps")


def cell_text(cell: Cell) -> str:
    """Return a cell as text: `mnist5k / inc / pgd L∞ ε = 0.1`, or `mnist5k / inc / clean`."""
    dataset, defense, attack, norm, eps = cell
    strength = "" if norm == "none" else f" {norm_text(norm)} ε = {eps_text(eps)}"
    return f"{dataset} / {defense} / {attack}{strength}"


class _System(BaseModel):
    """The part of an identity on a defense or an attack, with the keys that reports show."""

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
    """The identity of a job, with the keys that are read again."""

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


def _check_identity(stored: Stored, path: Path) -> None:
    """Raise InputError where the metadata of a record file is invalid, or its images have another shape."""
    try:
        identity = parsed(json.dumps(stored.identity).encode(), _Identity)
        if stored.kernels is not None:
            parsed(json.dumps(stored.kernels).encode(), KernelsPart)
        size = math.prod(identity.shape)
        for column in (one for one in IMAGE_COLUMNS if one in stored.table.column_names):
            images = stored.table[column].drop_null().to_pylist()
            if not all(isinstance(image, bytes) and len(image) in (size, 4 * size) for image in images):
                raise ValueError(f"{column}: not images of shape {list(identity.shape)}")
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run again, which repeats its job") from error


@dataclass(frozen=True)
class JobFacts:
    """What is known about the job of a record file, apart from its rows.

    entry: facts from the plan. identity: identity of the job; None where the file does not exist. kernels: description
    of the numerical kernels that computed the rows (`running.kernels`); old records have none.
    """

    entry: Entry
    identity: JsonObject | None = None
    kernels: JsonObject | None = None


@dataclass(frozen=True)
class Results:
    """The results of a run.

    rows: per-input records (`records.schema`), with the key of their job as the column `key`. jobs: key → facts about
    the job. measured: stored results of measurements. run: content of run.json, {} where it is missing.
    """

    folder: Path
    rows: pd.DataFrame
    jobs: dict[str, JobFacts]
    measured: list[JsonObject] = field(default_factory=list)
    run: JsonObject = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read a run's folder; raises InputError where there are no records or a file is damaged."""
        store = Store(folder)
        if not store.folder.is_dir():
            meant = Path("results") / folder.name
            near = f"; did you mean {meant}?" if (meant / store.folder.name).is_dir() else ""
            raise InputError(f"{folder}: no records here; a run's folder holds records/*.parquet{near}")
        jobs, tables = {}, []
        for entry in store.index():
            key, path = key_in(entry.file), store.folder / entry.file
            if path.exists():
                stored = store.stored(path)
                _check_identity(stored, path)
                jobs[key] = JobFacts(entry, stored.identity, stored.kernels)
                tables.append(stored.table.append_column("key", pa.array([key] * len(stored.table))))
            else:
                jobs[key] = JobFacts(entry)
        rows = as_frame(tables) if tables else pd.DataFrame({"kind": pd.Series(dtype="string")})
        if len(rows) and (found := contradiction(rows)):
            file = store.folder / jobs[str(rows["key"].iloc[found.row])].entry.file
            raise DamagedRecords(f"{file}: damaged ({found.fault}); delete it and run again, which repeats its job")
        if (rows["kind"] == PROBED).all():
            raise InputError(f"{store.folder}: no records here yet")
        return cls(folder, rows, jobs, measurements.load(folder), stored_provenance(folder))

    @cached_property
    def records(self) -> pd.DataFrame:
        """The rows of which figures, tables and comparisons are made."""
        probed = self.rows["kind"] == PROBED
        return self.rows[~probed].reset_index(drop=True) if probed.any() else self.rows

    @cached_property
    def probes(self) -> pd.DataFrame:
        """The rows of the diagnosis' own attacks, which no figure, table or comparison uses."""
        return self.rows[self.rows["kind"] == PROBED].reset_index(drop=True)

    @cached_property
    def identities(self) -> dict[str, JsonObject]:
        """Key → identity of each job that has a record file."""
        return {key: job.identity for key, job in self.jobs.items() if job.identity is not None}

    def made_elsewhere(self, dataset: str, defense: str) -> bool:
        """Return whether all attacked images came from files, so that no attack was made on the defense."""
        here = [one for one in self.identities.values() if one["dataset"]["name"] == dataset]
        names = {one["attack"]["name"] for one in here if one["defense"]["label"] == defense}
        return names - {CLEAN, CALIBRATION} == {STORED}

    @cached_property
    def index(self) -> dict[str, Entry]:
        """Key → facts from the plan about each job that has a record file."""
        return {key: self.jobs[key].entry for key in self.identities}

    @property
    def missing(self) -> list[str]:
        """Names of record files that the index lists but that do not exist."""
        return [job.entry.file for job in self.jobs.values() if job.identity is None]

    @cached_property
    def measurements(self) -> list[JsonObject]:
        """The results of the matrix's measurements."""
        return [one for one in self.measured if not one["measurement"].startswith(PROBE)]

    @cached_property
    def inspections(self) -> list[JsonObject]:
        """The results of the diagnosis' measurements."""
        return [one for one in self.measured if one["measurement"].startswith(PROBE)]

    @cached_property
    def cells(self) -> dict[Cell, pd.DataFrame]:
        """The rows of each cell; raises InputError where two jobs have records of the same cell and seed."""
        cells = {cast(Cell, cell): rows for cell, rows in self.records.groupby(list(CELL_COLUMNS))}
        for cell, rows in cells.items():
            for seed, keys in rows.groupby("seed")["key"].unique().items():
                if len(keys) > 1:
                    raise InputError(
                        f"{self.folder}: {cell_text(cell)}, seed {seed}, has records of several jobs: "
                        f"{', '.join(keys)}; delete the files of all but one, or run the matrix again"
                    )
        return cells

    def identity(self, cell: Cell) -> JsonObject:
        """Return the identity of the job that computed a cell (with several seeds, of one of the jobs)."""
        return self.identities[self.cells[cell]["key"].iloc[0]]

    def status(self, cell: Cell) -> tuple[str, str]:
        """Return the status of a cell (ok, failed or skipped) and its reason."""
        first = self.cells[cell].sort_values("status").iloc[0]  # `failed` sorts before `ok`
        return str(first["status"]), str(first["reason"])

    @property
    def states(self) -> dict[str, str]:
        """Key of each job → the status of its first row (ok, failed or skipped)."""
        return dict(self.rows[["key", "status"]].drop_duplicates("key").itertuples(index=False))

    @property
    def distinct_kernels(self) -> list[JsonObject]:
        """The different descriptions of kernels in the records: see `store.distinct_kernels`."""
        return distinct_kernels(job.kernels for job in self.jobs.values() if job.kernels is not None)
