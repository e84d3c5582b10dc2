"""Reuses the records of a baseline for jobs with the same key, so that a new system is compared without running others.

Baselines are runs in results/baselines/<matrix> of the working folder, and those that are installed with the code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.metrics.paired import leaves, value_text
from manifold_bench.bench.planning.folders import BASELINES, check_files
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.plan import Plan
from manifold_bench.bench.records.provenance import Reused, stored_provenance
from manifold_bench.bench.records.store import Store, checksum_path, file_name
from manifold_bench.bench.running.session import Session
from manifold_bench.defenses.files import atomic_write
from manifold_bench.defenses.identity import JsonObject


def baseline_folders(matrix: str) -> list[Path]:
    """Return the folders with a baseline of that matrix: that of the working folder first, then the installed one.

    Raises InputError as `check_files` does.
    """
    here, with_the_code = Path() / BASELINES / matrix, Path(__file__).parents[1] / "baselines" / matrix
    folders = [here] if here.resolve() == with_the_code else [here, with_the_code]
    folders = [folder for folder in folders if folder.is_dir()]
    for folder in folders:
        check_files(folder)
    return folders


def reuse_records(plan: Plan, session: Session) -> tuple[list[Job], list[Reused]]:
    """Return the jobs of a plan's whole matrix that do not run but have records, and what was reused from baselines.

    The records come from an earlier run or a baseline. If all defenses of the matrix run, and only attacks were chosen,
    clean passes are reused from a baseline, too. Other defenses are shown under the attacks that a defense which runs
    has met (`comparable`).
    """
    if not plan.is_cut:
        return [], []
    folders = baseline_folders(Path(plan.matrix.source).stem)
    folders = [folder for folder in folders if folder.resolve() != session.folder.resolve()]
    store, others = session.store, comparable(plan, [session.store, *map(Store, folders)])
    clean = [job for job in plan.jobs if job.attack is None and plan.matrix.defenses == plan.whole.defenses]
    reused = reuse([*others, *clean], store, folders)
    stored = [job for job in others if store.status(job) in ("ok", "failed", "skipped")]
    keys = {job.key for job in stored}
    defenses = {choice.label for choice in plan.whole.defenses}
    attacks = {choice.label for choice in plan.whole.attacks}
    of_matrix = [job for job in others if job.defense.label in defenses and (not job.attack or job.label in attacks)]
    missing = [job for job in of_matrix if job.key not in keys and not job.skip]
    for line in (*reused, *missing_record_reasons(missing, folders)):
        session.board.line(str(line))
    return stored, reused


def comparable(plan: Plan, stores: list[Store]) -> list[Job]:
    """Return the jobs of a plan's whole matrix that do not run, without those that would make a comparison unfair.

    If only some attacks run on the named defenses, the worst case of any other defense has to come from these attacks,
    too, or it would look weaker. stores: those that may have records of the named defenses under further attacks.
    """
    named = {choice.label for choice in plan.matrix.defenses}
    own = [job for job in plan.other_jobs if job.defense.label in named]
    met = {_cell(job) for job in plan.jobs}
    met |= {_cell(job) for job in own if any(store.status(job) in ("ok", "failed", "skipped") for store in stores)}
    return [job for job in plan.other_jobs if job.defense.label in named or not job.attack or _cell(job) in met]


def _cell(job: Job) -> tuple[str, str, str]:
    return job.dataset.name, job.label, job.norm


def reuse(jobs: Iterable[Job], store: Store, folders: Iterable[Path]) -> list[Reused]:
    """Copy records of jobs from baselines if the store lacks them; return how many come from each baseline.

    Only complete records with the same key are copied, of jobs that are ok or skipped. Identical files of an earlier
    call count too.
    """
    reused = []
    missing = list(jobs)
    for folder in folders:
        baseline = Store(folder)
        left = [job for job in missing if not _copied(job, baseline, store)]
        if len(left) < len(missing):
            run = stored_provenance(folder)
            code, started = (str(run.get(key, "unknown")) for key in ("code", "started"))
            reused.append(Reused(str(folder), code[:12], started[:10], len(missing) - len(left)))
        missing = left
    return reused


def _copied(job: Job, baseline: Store, store: Store) -> bool:
    """Copy the baseline's record of a job if the store has none; return whether the store has the same file."""
    source, target = baseline.path(job), store.path(job)
    if target.exists():
        return source.exists() and _checksum(source) == _checksum(target) != ""
    if baseline.status(job) not in ("ok", "skipped"):
        return False
    store.folder.mkdir(parents=True, exist_ok=True)
    for file in (checksum_path, Path):  # the checksum first, so that every record is complete
        atomic_write(file(target), file(source).read_bytes())
    return True


def _checksum(path: Path) -> str:
    path = checksum_path(path)
    return path.read_text(encoding="utf-8") if path.exists() else ""


def missing_record_reasons(jobs: Iterable[Job], folders: Iterable[Path]) -> list[str]:
    """Return a line for each reason why jobs have no stored records; most often those of a baseline have other keys."""
    folders = list(folders)
    reasons: dict[str, list[Job]] = {}
    for job in jobs:
        nearest = next((identity for folder in folders for identity in _namesakes(job, Store(folder))), None)
        reasons.setdefault("no stored records" if nearest is None else _difference(nearest, job), []).append(job)
    return [
        f"not in the report: {missing[0].title}{_and_more(len(missing) - 1)}: "
        f"{reason}; run without --defense and --attack to compute them"
        for reason, missing in reasons.items()
    ]


def _and_more(jobs: int) -> str:
    return f" (and {jobs} more job{'s' * (jobs > 1)})" if jobs else ""


def _namesakes(job: Job, baseline: Store) -> Iterator[JsonObject]:
    """Yield what identifies each of a baseline's cells that has a job's names of data set, defense, attack and norm.

    Their keys, the hashes of everything that a figure depends on, may differ from the job's.
    """
    name = file_name(job.dataset.name, job.defense.label, job.label, job.norm)
    for path in sorted(baseline.folder.glob(f"{name}--*.parquet")):
        try:
            yield baseline.read(path)[1]
        except InputError:
            continue


def _difference(stored: JsonObject, job: Job) -> str:
    """Return why two keys differ, hashes last: `the stored records have another n of the data set (64, not 16)`."""
    old, new = dict(leaves(stored)), dict(leaves(json.loads(json.dumps(job.identity))))
    paths = [path for path in sorted({*old, *new}) if old.get(path) != new.get(path)]
    if not paths:
        return "its stored records are damaged or not ok"
    first = min(paths, key=lambda path: (path != "identity", path.endswith("sha256")))
    *parts, name = first.removesuffix("_sha256").split(".")  # attack.parameters.steps, dataset.n, device
    whose = f" of the {'data set' if parts[0] == 'dataset' else parts[0]}" if parts else ""
    values = "" if first.endswith("sha256") else f" ({value_text(old, first)}, not {value_text(new, first)})"
    return f"the stored records have another {name}{whose}{values}"
