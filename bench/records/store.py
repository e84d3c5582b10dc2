"""Stores the records of a run: one parquet file for each job, written atomically and protected by a checksum.

records/<data set>--<defense>--<attack>--<norm>--<key>.parquet   the rows; in its metadata the job's identity and the
                                                                  kernels that computed them (kernels.py)
records/<…>.sha256                                                its checksum, written first
records/index.json                                                the jobs of the last run, in the plan's order, and
                                                                  what the plan knows of each (Entry)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.records.files import FileName, Name, parsed, read_json
from manifold_bench.bench.records.schema import REVISION, as_frame, as_stored, contradiction, identity_mismatch, typed
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.files import atomic_write, checked_file
from manifold_bench.defenses.identity import JsonObject, key_of

INDEX = "index.json"

IDENTITY = b"manifold_bench.identity"

KERNELS = b"manifold_bench.kernels"


class DamagedRecords(InputError):
    """Raised for a record file whose content is damaged."""


class Planned(Protocol):
    """A planned job or measurement, whose result is stored.

    key: hash of the identity. identity: everything that the result depends on. names: data set, defense and attack or
    measurement, of which the file's name is made. title: text of one line. facts: further fields of a job (see `Entry`)
    or of a measurement.
    """

    @property
    def key(self) -> str: ...
    @property
    def identity(self) -> JsonObject: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def title(self) -> str: ...
    @property
    def facts(self) -> JsonObject: ...


class Entry(NamedTuple):
    """A job in the index, with facts from the plan that its rows do not hold.

    file: name of the record file. knowledge: what the attacker knows (attacks.base.Knowledge), None for clean inputs.
    family: family of the defense. minimal: whether it is a minimal-distance attack, which runs once for all ε.
    """

    file: FileName
    title: str = ""
    knowledge: str | None = None
    family: Name = "not stated"
    minimal: bool = False


class Index(BaseModel):
    """The content of index.json."""

    jobs: list[Entry]


class Contents(NamedTuple):
    """The content of a record file. kernels: processor and libraries that computed the rows; None if not stored."""

    rows: pd.DataFrame
    identity: JsonObject
    kernels: JsonObject | None


class Stored(NamedTuple):
    """`Contents` with the rows as an Arrow table."""

    table: pa.Table
    identity: JsonObject
    kernels: JsonObject | None


class Store:
    """The folder `records` in a run's output folder. Several processes may write different jobs at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "records"

    def path(self, job: Planned) -> Path:
        """Return the path of a job's file; the name shows what the job is and ends with its key."""
        return self.folder / f"{file_name(*job.names)}--{job.key[:16]}.parquet"

    def write(self, job: Planned, rows: pd.DataFrame, kernels: JsonObject | None = None) -> None:
        """Store the rows of a job. kernels: what computed them (`running.kernels`), None where nothing was computed."""
        self.save(self.path(job).name, Contents(rows, job.identity, kernels))

    def save(self, name: str, contents: Contents) -> None:
        """Store rows in a file of that name, atomically.

        The checksum is written first, so that a record file that exists is always complete.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pandas(typed(contents.rows), preserve_index=False)
        metadata = {**(table.schema.metadata or {}), IDENTITY: json.dumps(contents.identity).encode()}
        if contents.kernels is not None:
            metadata[KERNELS] = json.dumps(contents.kernels).encode()
        path, file = self.folder / name, pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(metadata), file, compression="zstd")
        raw = file.getvalue().to_pybytes()
        atomic_write(checksum_path(path), hashlib.sha256(raw).hexdigest() + "\n")
        atomic_write(path, raw)

    def read(self, path: Path) -> tuple[pd.DataFrame, JsonObject]:
        """Return the rows and the identity in a record file; raises the errors of `contents`."""
        return self.contents(path)[:2]

    def contents(self, path: Path) -> Contents:
        """Return the content of a record file, with rows of the schema's types; raises the errors of `stored`."""
        table, identity, kernels = self.stored(path)
        return Contents(as_frame([table]), identity, kernels)

    def stored(self, path: Path) -> Stored:
        """Return the content of a record file as an Arrow table, of which many are quickly joined (`schema.as_frame`).

        Raises DamagedRecords, or InputError for records of another revision. `schema.contradiction` checks the values.
        """
        with _reading(path):
            file, identity, kernels = self._opened(path)
            table = as_stored(file.read(use_threads=False))
            if fault := identity_mismatch(table, identity):
                raise ValueError(fault)
            return Stored(table, identity, kernels)

    def _opened(self, path: Path) -> tuple[pq.ParquetFile, JsonObject, JsonObject | None]:
        """Return a record file after checking its checksum, with its identity and kernels."""
        raw = checked_file(path).read_bytes()
        if hashlib.sha256(raw).hexdigest() != checked_file(checksum_path(path)).read_text(encoding="utf-8").strip():
            raise ValueError("its content doesn't match its checksum")
        file = pq.ParquetFile(pa.BufferReader(raw))
        metadata = file.schema_arrow.metadata
        identity = parsed(metadata[IDENTITY], JsonObject)
        if (found := identity.get("records", 1)) != REVISION:
            raise InputError(
                f"{path}: records of revision {found}, this version reads revision {REVISION}; run its matrix again"
            )
        check_key(path, identity)
        return file, identity, parsed(metadata[KERNELS], JsonObject) if KERNELS in metadata else None

    def status(self, job: Planned) -> str:
        """Return the stored status of a job (ok, failed or skipped), or missing, or damaged."""
        path = self.path(job)
        if not path.exists():
            return "missing"
        try:
            rows, identity, _ = self.contents(path)
        except InputError:
            return "damaged"
        if identity != json.loads(json.dumps(job.identity)) or rows.empty or contradiction(rows):
            return "damaged"
        return str(rows["status"].iloc[0])

    def write_index(self, jobs: Iterable[Planned]) -> None:
        """Write index.json, which lists the jobs of the run; other files in the folder are of earlier runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = [Entry(self.path(job).name, job.title, **job.facts)._asdict() for job in jobs]
        atomic_write(self.folder / INDEX, json.dumps({"jobs": entries}, indent=1) + "\n")

    def index(self) -> list[Entry]:
        """Return the jobs of the run in the plan's order, whether their files exist or not.

        Without index.json these are all record files in the folder. Raises InputError where index.json is damaged, or
        two files are of one job.
        """
        index = self.folder / INDEX
        if not index.exists():
            entries = [Entry(path.name) for path in sorted(self.folder.glob("*.parquet"))]
        else:
            entries = read_json(index, Index, "delete it to use every record in the folder").jobs
        keys = Counter(key_in(entry.file) for entry in entries)
        if several := [entry.file for entry in entries if keys[key_in(entry.file)] > 1]:
            where = index if index.exists() else self.folder
            raise InputError(f"{where}: {several[0]} and {several[1]} are records of one job; keep one, or run again")
        return entries


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Return a context that turns errors of reading a record file into DamagedRecords with its path."""
    try:
        yield
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        raise DamagedRecords(
            f"{path}: damaged or not a record file ({one_line(error)}); delete it and run again"
        ) from error


def distinct_kernels(described: Iterable[JsonObject]) -> list[JsonObject]:
    """Return the different descriptions of kernels; there are several if a run was continued on another machine.

    `uneven` of each lists all layers that round differently for different batch sizes in any defense.
    """
    merged: dict[str, JsonObject] = {}
    for one in described:
        machine = {name: value for name, value in one.items() if name != "uneven"}
        known = merged.setdefault(json.dumps(machine, sort_keys=True), machine | {"uneven": []})
        known["uneven"] = sorted({*known["uneven"], *one.get("uneven", [])})
    return list(merged.values())


def key_in(file: str) -> str:
    """Return the shortened key of a job, which is the end of its record file's name."""
    return Path(file).stem.rsplit("--", 1)[-1]


def check_key(path: Path, identity: JsonObject) -> None:
    """Raise ValueError where a file's name is not that of a result with this identity."""
    if key_in(path.name) != (key := key_of(identity)[:16]):
        raise ValueError(f"its content is that of the key {key}, which is not the one in its name")


def checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def file_name(*parts: str) -> str:
    """Return parts joined into a name that every file system accepts; different parts may give the same name."""
    return "--".join(re.sub(r"[^A-Za-z0-9.=,+-]+", "_", part).strip("_.")[:60] for part in parts)
