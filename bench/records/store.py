"""The records of a run on disk: one parquet file per job, complete and checked, or not there.

records/<data set>--<defense>--<attack>--<norm>--<key>.parquet   the rows; in its metadata the job's identity and the
                                                                  kernels that computed them (kernels.py)
records/<…>.sha256                                                its checksum, written first
records/index.json                                                the jobs of the last run, in the plan's order
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from manifold_bench.bench.errors import InputError, one_line
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.records.files import atomic_write
from manifold_bench.bench.records.schema import PROBE, REVISION, typed

T = TypeVar("T")


INDEX = "index.json"


IDENTITY = b"manifold_bench.identity"


KERNELS = b"manifold_bench.kernels"


class DamagedRecords(InputError):
    """A record file that cannot be what was written."""


class Store:
    """The folder `records` in a run's output folder. Several processes may write different jobs at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "records"

    def path(self, job: Job) -> Path:
        """The file of a job: readable, and unique by its key."""
        return (
            self.folder
            / f"{file_name(job.dataset.name, job.defense.label, job.label, job.norm)}--{job.key[:16]}.parquet"
        )

    def write(self, job: Job, rows: pd.DataFrame, kernels: dict[str, Any] | None = None) -> None:
        """Stores a job's rows. kernels: what computed them (`kernels.kernels`); None where nothing was computed."""
        self.save(self.path(job).name, rows, job.identity, kernels)

    def save(
        self, name: str, rows: pd.DataFrame, identity: dict[str, Any], kernels: dict[str, Any] | None = None
    ) -> None:
        """Stores rows in a file of that name: atomically, the checksum first, so that a file that is there is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pandas(typed(rows), preserve_index=False)
        metadata = {**(table.schema.metadata or {}), IDENTITY: json.dumps(identity).encode()}
        if kernels is not None:
            metadata[KERNELS] = json.dumps(kernels).encode()
        path, content = self.folder / name, pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(metadata), content, compression="zstd")
        raw = content.getvalue().to_pybytes()
        atomic_write(checksum_path(path), hashlib.sha256(raw).hexdigest() + "\n")
        atomic_write(path, raw)

    def read(self, path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
        """A job's rows and its identity; raises DamagedRecords, or InputError for records of another version."""
        return self._checked(path, lambda raw: typed(pq.read_table(raw).to_pandas()))

    def _checked(self, path: Path, take: Callable[[pa.BufferReader], T]) -> tuple[T, dict[str, Any]]:
        """What `take` makes of a file whose content is as it was written, and its identity; raises as `read` does."""
        try:
            raw = path.read_bytes()
            expected = checksum_path(path).read_text(encoding="utf-8").strip()
            if hashlib.sha256(raw).hexdigest() != expected:
                raise DamagedRecords(
                    f"{path}: damaged: its content doesn't match its checksum; delete it and run again"
                )
            identity = json.loads(pq.read_schema(pa.BufferReader(raw)).metadata[IDENTITY])
            if (found := identity.get("records", 1)) != REVISION:
                raise InputError(
                    f"{path}: records of revision {found}, this version reads revision {REVISION}; run its matrix again"
                )
            return take(pa.BufferReader(raw)), identity
        except InputError:
            raise
        except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
            raise DamagedRecords(
                f"{path}: damaged or not a record file ({one_line(error)}); delete it and run again"
            ) from error

    def kernels(self, path: Path) -> dict[str, Any] | None:
        """The kernels that computed a file's rows; None where it doesn't say. Raises as `read` does."""
        schema, _ = self._checked(path, pq.read_schema)
        return json.loads(schema.metadata[KERNELS]) if KERNELS in schema.metadata else None

    def all_kernels(self) -> list[dict[str, Any]]:
        """Each description of kernels that is in the run's records, once: a run may continue on another machine.

        `uneven` lists the layers that any of its defenses found uneven. Raises as `read` does.
        """
        merged: dict[str, dict[str, Any]] = {}
        for path in self.expected():
            found = self.kernels(path) if path.exists() else None
            if found is not None:
                uneven = found.pop("uneven", [])
                known = merged.setdefault(json.dumps(found, sort_keys=True), found | {"uneven": []})
                known["uneven"] = sorted({*known["uneven"], *uneven})
        return list(merged.values())

    def status(self, job: Job) -> str:
        """ok, failed or skipped as stored; missing; or damaged."""
        path = self.path(job)
        if not path.exists():
            return "missing"
        try:
            states, identity = self._checked(path, lambda raw: pq.read_table(raw, columns=["status"])["status"])
        except InputError:
            return "damaged"
        if identity != json.loads(json.dumps(job.identity)) or not len(states):
            return "damaged"
        return str(states[0])

    def write_index(self, jobs: list[Job]) -> None:
        """Says which jobs the run consists of: what else lies in the folder is older and not part of the report."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = [
            {
                "file": self.path(job).name,
                "title": job.title,
                "knowledge": job.attack.knowledge if job.attack else None,
            }
            for job in jobs
        ]
        atomic_write(self.folder / INDEX, json.dumps({"jobs": entries}, indent=1) + "\n")

    def expected(self) -> list[Path]:
        """The files that the run consists of, in the order of its index, there or not; without an index, what is there.

        Raises InputError where the index is damaged.
        """
        index = self.folder / INDEX
        if not index.exists():
            return sorted(self.folder.glob("*.parquet"))
        try:
            return [self.folder / entry["file"] for entry in json.loads(index.read_text(encoding="utf-8"))["jobs"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{index}: damaged ({one_line(error)}); delete it to use every record in the folder"
            ) from error

    def knowledge(self) -> dict[str, str]:
        """What the attacker of each job knows (attacks.base.Knowledge), by the job's key in its file name."""
        index = self.folder / INDEX
        entries = json.loads(index.read_text(encoding="utf-8"))["jobs"] if index.exists() else []
        return {_key(entry["file"]): entry["knowledge"] for entry in entries if entry.get("knowledge")}

    def load(self, probes: bool = False) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
        """All records of the run with their job's `key` as a further column, and each key's identity.

        probes: those of the diagnosis too, which no figure is taken over. Without an index every file in the folder
        belongs. Raises InputError where there is nothing, or where a file is damaged.
        """
        if not self.folder.is_dir():
            raise InputError(f"{self.folder.parent}: no records here; a run's folder holds records/*.parquet")
        paths = [path for path in self.expected() if path.exists()]
        frames, identities = [], {}
        for path in paths:
            rows, identity = self.read(path)
            if not probes and rows["attack"].str.startswith(PROBE).any():
                continue
            key = _key(path.name)
            identities[key] = identity
            frames.append(rows.assign(key=key))
        if not frames:
            raise InputError(f"{self.folder}: no records here yet")
        whole = pd.concat(frames, ignore_index=True)
        return whole, identities


def _key(file: str) -> str:
    return Path(file).stem.rsplit("--", 1)[1]


def checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def file_name(*parts: str) -> str:
    """Parts joined into a name that every file system takes; the key behind it tells similar ones apart."""
    return "--".join(re.sub(r"[^A-Za-z0-9.=,+-]+", "_", part).strip("_")[:60] for part in parts)
