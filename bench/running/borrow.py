"""What stands beside a new system without being run again: records of baselines, taken over where the keys agree.

Baselines are runs in results/baselines/<matrix>: of the folder the command runs in, and those that come with the code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.metrics.paired import flat, value_text
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.records.provenance import stored_provenance
from manifold_bench.bench.records.store import Store, checksum_path, file_name


@dataclass(frozen=True)
class Borrowed:
    """What a run has from a baseline: its folder, the code it was made by, when, and how many jobs."""

    folder: str
    code: str
    started: str
    jobs: int

    def __str__(self) -> str:
        return f"{self.jobs} jobs from the baseline {self.folder} (code {self.code}, {self.started}), not run again"


def baseline_folders(matrix: str) -> list[Path]:
    """Where baselines of a matrix lie, by its name: those of this folder first, then those that come with the code."""
    here, with_the_code = Path() / BASELINES / matrix, Path(__file__).parents[1] / "baselines" / matrix
    folders = [here] if here.resolve() == with_the_code else [here, with_the_code]
    return [folder for folder in folders if folder.is_dir()]


def borrow(jobs: Iterable[Job], store: Store, folders: Iterable[Path]) -> list[Borrowed]:
    """Copies the records of jobs that the store lacks from baselines that have them; returns what it has from where.

    Only records with the very key of a job are taken, complete and ok or skipped. What an earlier call has copied
    counts too: a file that is the baseline's, to the bit.
    """
    found = []
    waiting = list(jobs)
    for folder in folders:
        baseline = Store(folder)
        taken = [job for job in waiting if _take(job, baseline, store)]
        waiting = [job for job in waiting if job not in taken]
        if taken:
            told = stored_provenance(folder)
            code, started = (str(told.get(key, "unknown")) for key in ("code", "started"))
            found.append(Borrowed(str(folder), code[:12], started[:10], len(taken)))
    return found


def _take(job: Job, baseline: Store, store: Store) -> bool:
    """Whether the store has, now or from before, the baseline's record of that job."""
    source, target = baseline.path(job), store.path(job)
    if target.exists():
        return source.exists() and _checksum(source) == _checksum(target) != ""
    if baseline.status(job) not in ("ok", "skipped"):
        return False
    store.folder.mkdir(parents=True, exist_ok=True)
    for of in (checksum_path, Path):  # the checksum first: a record that is there is whole
        draft = target.with_name(f".{of(target).name}.{os.getpid()}.tmp")
        shutil.copyfile(of(source), draft)
        draft.replace(of(target))
    return True


def _checksum(path: Path) -> str:
    path = checksum_path(path)
    return path.read_text(encoding="utf-8") if path.exists() else ""


def lacking(jobs: Iterable[Job], folders: Iterable[Path]) -> list[str]:
    """A line for each reason why those jobs have no stored records: mostly the baselines' are of other keys."""
    folders = list(folders)
    reasons: dict[str, list[Job]] = {}
    for job in jobs:
        nearest = next((identity for folder in folders for identity in _namesakes(job, Store(folder))), None)
        reasons.setdefault("nothing stored" if nearest is None else _difference(nearest, job), []).append(job)
    return [
        f"not beside: {missing[0].title}{f' and {len(missing) - 1} more jobs' if missing[1:] else ''}: {reason}"
        for reason, missing in reasons.items()
    ]


def _namesakes(job: Job, baseline: Store) -> Iterator[dict[str, Any]]:
    """Identities of a baseline's records of the same names, whatever their keys."""
    name = file_name(job.dataset.name, job.defense.label, job.label, job.norm)
    for path in sorted(baseline.folder.glob(f"{name}--*.parquet")):
        try:
            yield baseline.read(path)[1]
        except InputError:
            continue


def _difference(stored: dict[str, Any], job: Job) -> str:
    """`stored with dataset.n 64, not 16`: what first makes the keys differ, hashes last."""
    old, new = dict(flat(stored)), dict(flat(json.loads(json.dumps(job.identity))))
    paths = [path for path in sorted({*old, *new}) if old.get(path) != new.get(path)]
    if not paths:
        return "its stored records are damaged or not ok"
    first = min(paths, key=lambda path: (path != "identity", path.endswith("sha256")))
    if first.endswith("sha256"):
        return f"stored with another {first.removesuffix('_sha256')}"
    return f"stored with {first} {value_text(old, first)}, not {value_text(new, first)}"


BASELINES = Path("results") / "baselines"
