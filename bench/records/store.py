"""The records of a run on disk: one parquet file per job, complete and checked, or not there.

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
from manifold_bench.bench.records.schema import REVISION, as_stored, contradiction, typed
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.files import atomic_write
from manifold_bench.defenses.identity import JsonObject

INDEX = "index.json"


IDENTITY = b"manifold_bench.identity"


KERNELS = b"manifold_bench.kernels"


class DamagedRecords(InputError):
    """A record file that cannot be what was written."""


class Planned(Protocol):
    """A job or a measurement that has been planned and whose result will be stored.

    key: hash of the identity. names: data set, defense and what is done to it, of which the file's name is made.
    title: the job in a line. facts: what is stored of a job besides (see `Entry`), or of a measurement.
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
    """What the plan knew of a job and its rows don't say.

    knowledge: what the attacker knows (attacks.base.Knowledge), None for clean inputs. family: kind of the defense.
    minimal: whether the attack looks for smallest perturbations, in one run for all ε.
    """

    file: FileName
    title: str = ""
    knowledge: str | None = None
    family: Name = "other"
    minimal: bool = False


class Index(BaseModel):
    """The file index.json."""

    jobs: list[Entry]


class Contents(NamedTuple):
    """What a record file holds. kernels: what computed the rows; None where it doesn't say."""

    rows: pd.DataFrame
    identity: JsonObject
    kernels: JsonObject | None


class Store:
    """The folder `records` in a run's output folder. Several processes may write different jobs at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "records"

    def path(self, job: Planned) -> Path:
        """The file of a job: readable, and unique by its key."""
        return self.folder / f"{file_name(*job.names)}--{job.key[:16]}.parquet"

    def write(self, job: Planned, rows: pd.DataFrame, kernels: JsonObject | None = None) -> None:
        """Stores a job's rows. kernels: what computed them (`kernels.kernels`); None where nothing was computed."""
        self.save(self.path(job).name, Contents(rows, job.identity, kernels))

    def save(self, name: str, contents: Contents) -> None:
        """Stores rows in a file of that name: atomically, the checksum first, so that a file that is there is whole."""
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
        """A job's rows and its identity; raises as `contents` does."""
        return self.contents(path)[:2]

    def contents(self, path: Path) -> Contents:
        """All that a record file holds; raises DamagedRecords, or InputError for records of another version.

        Rows are of the schema's types; whether they contradict themselves is for `schema.contradiction` to say.
        """
        with _reading(path):
            file, identity, kernels = self._opened(path)
            return Contents(as_stored(file.read(use_threads=False).to_pandas()), identity, kernels)

    def _opened(self, path: Path) -> tuple[pq.ParquetFile, JsonObject, JsonObject | None]:
        """A record file whose content is as it was written, its identity and kernels."""
        raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != checksum_path(path).read_text(encoding="utf-8").strip():
            raise ValueError("its content doesn't match its checksum")
        file = pq.ParquetFile(pa.BufferReader(raw))
        metadata = file.schema_arrow.metadata
        identity = parsed(metadata[IDENTITY], JsonObject)
        if (found := identity.get("records", 1)) != REVISION:
            raise InputError(
                f"{path}: records of revision {found}, this version reads revision {REVISION}; run its matrix again"
            )
        return file, identity, parsed(metadata[KERNELS], JsonObject) if KERNELS in metadata else None

    def status(self, job: Planned) -> str:
        """ok, failed or skipped as stored; missing; or damaged, where rows contradict themselves too."""
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
        """Says which jobs the run consists of: what else lies in the folder is older and not part of the report."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = [Entry(self.path(job).name, job.title, **job.facts)._asdict() for job in jobs]
        atomic_write(self.folder / INDEX, json.dumps({"jobs": entries}, indent=1) + "\n")

    def index(self) -> list[Entry]:
        """The files that the run consists of, in the plan's order, there or not; without an index, what is there.

        Raises InputError where the index is damaged.
        """
        index = self.folder / INDEX
        if not index.exists():
            return [Entry(path.name) for path in sorted(self.folder.glob("*.parquet"))]
        return read_json(index, Index, "delete it to use every record in the folder").jobs


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever reading a record file raises into DamagedRecords that names it."""
    try:
        yield
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise DamagedRecords(
            f"{path}: damaged or not a record file ({one_line(error)}); delete it and run again"
        ) from error


def distinct_kernels(described: Iterable[JsonObject]) -> list[JsonObject]:
    """Each description of kernels once: a run may continue on another machine.

    `uneven` lists the layers that any of its defenses found uneven.
    """
    merged: dict[str, JsonObject] = {}
    for one in described:
        machine = {name: value for name, value in one.items() if name != "uneven"}
        known = merged.setdefault(json.dumps(machine, sort_keys=True), machine | {"uneven": []})
        known["uneven"] = sorted({*known["uneven"], *one.get("uneven", [])})
    return list(merged.values())


def key_in(file: str) -> str:
    """The job's key, shortened, at the end of a record file's name."""
    return Path(file).stem.rsplit("--", 1)[-1]


def checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def file_name(*parts: str) -> str:
    """Parts joined into a name that every file system takes; the key behind it tells similar ones apart."""
    return "--".join(re.sub(r"[^A-Za-z0-9.=,+-]+", "_", part).strip("_")[:60] for part in parts)
