"""Promote the records of a run to a baseline that later runs are compared with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from manifold_bench.bench.errors import InputError

if TYPE_CHECKING:
    from manifold_bench.bench.metrics.paired import Run


def promote(folder: Path, target: Path, force: bool = False) -> list[str]:
    """Makes a run's records the baseline `target`, in place of what is there; returns lines on what was done.

    The records go without their images, which no figure needs and which may not be ours to publish; run.json and
    summary.csv stand beside them. Raises InputError where no cell of the run has figures, where `target` is no
    baseline, and, unless forced, where the run is unfinished or a cell failed. The old baseline stays until the new one
    is whole and reads back.
    """
    from manifold_bench.bench.metrics.paired import Run
    from manifold_bench.bench.metrics.robustness import summary
    from manifold_bench.bench.records.schema import IMAGE_COLUMNS
    from manifold_bench.bench.records.store import INDEX, Store

    if folder.resolve() == target.resolve():
        raise InputError(f"{folder}: is that baseline itself; name another run, or another baseline with --name")
    if target.exists() and not (target / "records").is_dir():
        raise InputError(f"{target}: is there and holds no records; remove it or give another --name")
    run = Run.load(folder)
    if not any(run.status(cell)[0] == "ok" for cell in run.cells):
        raise InputError(f"{folder}: no cell has figures: there is nothing to compare with")
    faults = list(incomplete(folder, run))
    if faults and not force:
        raise InputError(f"{folder}: {faults[0]}; run its matrix again, or promote it as it is with --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (target.with_name(f".{target.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    try:
        source, copy = Store(folder), Store(draft)
        for path in source.expected():
            if path.exists():
                rows, identity = source.read(path)
                rows = rows.drop(columns=list(IMAGE_COLUMNS), errors="ignore")
                copy.save(path.name, rows, identity, source.kernels(path))
        for name in ("run.json", f"{copy.folder.name}/{INDEX}"):
            if (folder / name).exists():
                shutil.copyfile(folder / name, draft / name)
        summary(copy.load()[0]).to_csv(draft / "summary.csv", index=False)
        told = [*(f"as it is: {fault}" for fault in faults), *described(target, Run.load(draft), _size(draft))]
        if target.exists():
            target.rename(old)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return told


def incomplete(folder: Path, run: Run) -> Iterator[str]:
    """What keeps a run from being a baseline."""
    from manifold_bench.bench.metrics.paired import cell_text
    from manifold_bench.bench.records.store import Store

    if "finished" not in run.provenance:
        yield "no run.json says whether it finished"
    elif not run.provenance["finished"]:
        yield "not finished"
    if missing := [path.name for path in Store(folder).expected() if not path.exists()]:
        yield f"{len(missing)} of its jobs have no records, the first {missing[0]}"
    failed = [(cell, reason) for cell in run.cells for status, reason in [run.status(cell)] if status == "failed"]
    if failed:
        cell, reason = failed[0]
        yield f"{len(failed)} of its cells failed, the first {cell_text(cell)}: {reason}"


def described(target: Path, new: Run, size: int) -> Iterator[str]:
    """What the baseline holds, and what it replaces, by the verdicts of a comparison."""
    from manifold_bench.bench.gate.gate import Gate, origin
    from manifold_bench.bench.metrics.paired import Run

    yield f"{target}: {len(new.cells)} cells, {size / 1024:,.0f} KiB, {origin(new.provenance)}"
    if target.exists():
        try:
            old = Run.load(target)
        except InputError as error:
            yield f"replaces one that cannot be read: {error}"
            return
        gate = Gate.of(old, new, [])
        added = f"; {len(gate.added)} cells are new" if gate.added else ""
        yield f"replaces that of {origin(old.provenance)}: {gate.closing}{added}"


def _size(folder: Path) -> int:
    """Bytes of all files in the folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
