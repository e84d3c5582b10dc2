"""Promote the records of a run to a baseline that later runs are compared with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.gate.gate import Gate, origin
from manifold_bench.bench.metrics.summary import summary
from manifold_bench.bench.records.results import Results, cell_text
from manifold_bench.bench.records.schema import IMAGE_COLUMNS
from manifold_bench.bench.records.store import INDEX, Contents, Store
from manifold_bench.bench.report.table import csv


def promote(results: Results, target: Path, force: bool = False) -> list[str]:
    """Makes a run's records the baseline `target`, in place of what is there; returns lines on what was done.

    The records go without their images, which no figure needs and which may not be ours to publish; run.json and
    summary.csv stand beside them. Raises InputError where no cell of the run has figures, where `target` is no
    baseline, and, unless forced, where the run is unfinished or a cell failed. The old baseline stays until the new one
    is whole and reads back.
    """
    folder = results.folder
    if folder.resolve() == target.resolve():
        raise InputError(f"{folder}: is that baseline itself; name another run, or another baseline with --name")
    if target.exists() and not (target / "records").is_dir():
        raise InputError(f"{target}: is there and holds no records; remove it or give another --name")
    if not any(results.status(cell)[0] == "ok" for cell in results.cells):
        raise InputError(f"{folder}: no cell has figures: there is nothing to compare with")
    faults = list(incomplete(results))
    if faults and not force:
        raise InputError(f"{folder}: {faults[0]}; run its matrix again, or promote it as it is with --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (target.with_name(f".{target.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    try:
        copy = Store(draft)
        for rows in (results.records, results.probes):
            for key, own in rows.drop(columns=list(IMAGE_COLUMNS), errors="ignore").groupby("key"):
                contents = Contents(own, results.identities[str(key)], results.kernels.get(str(key)))
                copy.save(results.index[str(key)].file, contents)
        for name in ("run.json", f"{copy.folder.name}/{INDEX}"):
            if (folder / name).exists():
                shutil.copyfile(folder / name, draft / name)
        new = Results.load(draft)
        (draft / "summary.csv").write_text(csv(summary(new.records)), encoding="utf-8")
        told = [*(f"as it is: {fault}" for fault in faults), *described(target, new, _size(draft))]
        if target.exists():
            target.rename(old)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return told


def incomplete(results: Results) -> Iterator[str]:
    """What keeps a run from being a baseline."""
    if "finished" not in results.run:
        yield "no run.json says whether it finished"
    elif not results.run["finished"]:
        yield "not finished"
    if results.missing:
        yield f"{len(results.missing)} of its jobs have no records, the first {results.missing[0]}"
    failed = [
        (cell, reason) for cell in results.cells for status, reason in [results.status(cell)] if status == "failed"
    ]
    if failed:
        cell, reason = failed[0]
        yield f"{len(failed)} of its cells failed, the first {cell_text(cell)}: {reason}"


def described(target: Path, new: Results, size: int) -> Iterator[str]:
    """What the baseline holds, and what it replaces, by a comparison of the two."""
    yield f"{target}: {len(new.cells)} cells, {size / 1024:,.0f} KiB, {origin(new.run)}"
    if target.exists():
        try:
            old = Results.load(target)
        except InputError as error:
            yield f"replaces one that cannot be read: {error}"
            return
        gate = Gate.of(old, new, [])
        added = f"; {len(gate.added)} cells are new" if gate.added else ""
        yield f"replaces that of {origin(old.run)}: {gate.closing}{added}"


def _size(folder: Path) -> int:
    """Bytes of all files in the folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
