"""Promotes the records of a run to a baseline, with which later runs are compared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.gate.gate import Gate, origin
from manifold_bench.bench.metrics.summary import summary
from manifold_bench.bench.records import measurements
from manifold_bench.bench.records.results import Results, cell_text
from manifold_bench.bench.records.schema import IMAGE_COLUMNS
from manifold_bench.bench.records.store import INDEX, Contents, Store
from manifold_bench.bench.report.table import csv


def promote(results: Results, target: Path, force: bool = False) -> list[str]:
    """Copy a run's results to the baseline folder `target`, replace what is there, and return lines on what was done.

    Images are left out: no figure needs them, and the data's licence may forbid to publish them. run.json is copied and
    summary.csv is written. The old baseline is only removed after the new one was written and read back. Raises
    InputError where no cell of the run has figures, where `target` exists but is not a baseline, and, unless `force`,
    where the run is unfinished or a cell failed.
    """
    folder = results.folder
    if folder.resolve() == target.resolve():
        raise InputError(
            f"{folder}: this is the baseline itself; give the folder of a run, or another --name for the baseline"
        )
    if target.exists() and not (target / "records").is_dir():
        raise InputError(f"{target}: exists and is not a baseline; remove it, or give another name with --name")
    if not any(results.status(cell)[0] == "ok" for cell in results.cells):
        raise InputError(f"{folder}: no cell has results, so it cannot be a baseline; run its matrix again")
    faults = list(incomplete(results))
    if faults and not force:
        raise InputError(f"{folder}: {faults[0]}; run its matrix again, or promote it nevertheless with --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (target.with_name(f".{target.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    try:
        copy = Store(draft)
        for rows in (results.records, results.probes):
            for key, own in rows.drop(columns=list(IMAGE_COLUMNS), errors="ignore").groupby("key"):
                contents = Contents(own, results.identities[str(key)], results.jobs[str(key)].kernels)
                copy.save(results.index[str(key)].file, contents)
        for name in ("run.json", f"{copy.folder.name}/{INDEX}"):
            if (folder / name).exists():
                shutil.copyfile(folder / name, draft / name)
        measurements.copy_without_pictures(folder, draft)
        new = Results.load(draft)
        (draft / "summary.csv").write_text(csv(summary(new.records)), encoding="utf-8")
        lines = [*(f"promoted nevertheless: {fault}" for fault in faults), *promotion_lines(target, new, _size(draft))]
        if target.exists():
            target.rename(old)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return lines


def incomplete(results: Results) -> Iterator[str]:
    """Yield the reasons why a run should not become a baseline."""
    if "finished" not in results.run:
        yield "run.json is missing, so the run may be unfinished"
    elif not results.run["finished"]:
        yield "the run is not finished"
    if results.missing:
        yield f"{len(results.missing)} of its jobs have no records, the first one is {results.missing[0]}"
    failed = [
        (cell, reason) for cell in results.cells for status, reason in [results.status(cell)] if status == "failed"
    ]
    if failed:
        cell, reason = failed[0]
        yield f"{len(failed)} of its cells failed, the first one is {cell_text(cell)}: {reason}"


def promotion_lines(target: Path, new: Results, size: int) -> Iterator[str]:
    """Yield a line on the new baseline, and one that compares it with the baseline that it replaces.

    target: folder of the baseline. size: number of bytes of the new one.
    """
    yield f"{target}: {len(new.cells)} cells, {size / 1024:,.0f} KiB, {origin(new.run)}"
    if target.exists():
        try:
            old = Results.load(target)
        except InputError as error:
            yield f"replaces a baseline that cannot be read: {error}"
            return
        gate = Gate(old, new, [])
        added = f"; {len(gate.added)} cells are new" if gate.added else ""
        yield f"replaces the baseline of {origin(old.run)}: {gate.closing_line}{added}"


def _size(folder: Path) -> int:
    """Return the number of bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
