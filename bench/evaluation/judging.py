"""What the command `judge` does once its arguments are read: a plan whose attacks return the images of a file."""

from __future__ import annotations

import hashlib
import json
import math
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from manifold_bench.attacks.threat import allowed
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.evaluation.evaluate import chosen_engine, write_and_print_report
from manifold_bench.bench.planning.folders import check_files, data_folder
from manifold_bench.bench.planning.made_elsewhere import Found, first, matched, read
from manifold_bench.bench.planning.matrix import AttackChoice, DatasetEntry, Matrix
from manifold_bench.bench.planning.narrow import selected
from manifold_bench.bench.planning.plan import Options, Plan, make_plan
from manifold_bench.bench.planning.reading import check_labels, defense_by_name
from manifold_bench.bench.planning.refs import DatasetRef
from manifold_bench.bench.planning.sizes import check_size
from manifold_bench.bench.records.images import FOLDER
from manifold_bench.bench.records.log import LOG, Log
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import DISTANCES
from manifold_bench.bench.records.store import file_name
from manifold_bench.bench.running.board import Board, clock
from manifold_bench.bench.running.devices import checked_device
from manifold_bench.bench.running.engines.fork_server import serving
from manifold_bench.bench.running.execution import execute
from manifold_bench.bench.running.locks import run_folder
from manifold_bench.bench.running.session import Session
from manifold_bench.bench.running.stored_images import StoredImages
from manifold_bench.bench.running.url_folder import page_of
from manifold_bench.bench.terminal import print_line, terminal
from manifold_bench.bench.text import LEVELS, is_printable
from manifold_bench.defenses.errors import shortened

FAR = "farther than ε from the test image"
"""Fault of an image that is too far from the test image that it is judged with."""

ROUNDED = "farther than ε by no more than half a grey level"
"""Fault of an image that was within ε before its pixels were rounded to 8 bits."""

ADVICE = {
    FAR: "they may belong to other test images: store the right indices as `indices` in an .npz file",
    ROUNDED: "pictures of 8 bits are rounded: give unrounded images in an .npz file, or an ε that is 1/510 larger",
}
"""What to do about a fault."""

LONGEST = 200
"""Largest number of characters of a name that a file of images gives an attack or a defense."""


@serving()
def judge(given: Namespace) -> int:
    """Run the command with these arguments; return 0, or 1 if a defense failed."""
    folder, console, begun = Path(given.out), terminal(), time.time()
    check_files(folder)
    with run_folder(folder):
        plan = plan_of_images(given, folder)
        with chosen_engine(given) as engine:
            board = Board(console, engine.workers, Log(folder / LOG), given.quiet)
            ended = execute(plan, Session(folder, engine, board))
        write_and_print_report(ended.results, console, given.quiet)
        for line in validity(ended.results):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        print_line(console, f"{ended.counts}; {clock(time.time() - begun)} min; open {page_of(given.out)}")
    return 1 if ended.failed else 0


def plan_of_images(given: Namespace, folder: Path) -> Plan:
    """Return a plan whose attacks return the given images, and store these in the run's folder; raises InputError."""
    if given.images.is_dir() and (files := sorted(given.images.glob("*.npz"))):
        raise InputError(f"{given.images}: holds .npz files; name one of them, such as {files[0]}")
    sets = read(given.images)
    meta = {} if len(sets) > 1 else dict(next(iter(sets.values())).meta or {})
    name, device = _name(given, meta, "dataset"), checked_device(given.device)
    dataset = DatasetRef(name, data_folder(given.data)).load()
    made = [_choice(one, label, dataset, given, folder) for label, one in sets.items()]
    if len({indices for _, indices in made}) > 1:
        raise InputError(
            f"{given.images}: its tensors belong to different test images; judge each in a file of its own"
        )
    check_labels("--label", [choice.label for choice, _ in made])
    matrix = Matrix(
        source=str(given.images),
        datasets=(DatasetEntry(name=name, n=1),),
        defenses=selected((), given.defense, lambda one: [defense_by_name(one)]),
        attacks=tuple(choice for choice, _ in made),
        seeds=(0,),
        draws=1,
        timeout=4 * 3600.0,
    )
    named = {"defenses": [one.label for one in matrix.defenses]}
    options = Options(data_folder(given.data), device=device, named=named)
    plan = make_plan(matrix, options)
    return replace(plan, data=tuple(replace(one, indices=made[0][1]) for one in plan.data))


def _choice(
    found: Found, name: str, dataset: Dataset, given: Namespace, folder: Path
) -> tuple[AttackChoice, tuple[int, ...]]:
    """Return an attack that returns a set of images, and the indices of the test images that they belong to.

    name: name of the set in its file; empty if there is only one.
    """
    images = matched(first(found, given.n), dataset, given.images)
    made_on = [_text(given.images, images.meta, key) for key in ("attack", "defense") if images.meta.get(key, "") != ""]
    label = given.label or (" on ".join(made_on) if made_on else given.images.stem)
    label = f"{label}: {name}" if name else label
    norm = _name(given, images.meta, "norm")
    if norm not in StoredImages.norms:
        raise InputError(f"--norm: {norm!r} is not allowed; give {', '.join(StoredImages.norms)}")
    eps = math.inf
    if norm != "unrestricted":
        eps = check_size("--eps", norm, _known(given, images.meta, "eps"), dataset.shape)
    content = hashlib.sha256(images.images.tobytes() + images.inputs.tobytes()).hexdigest()
    file = (folder / FOLDER / f"{file_name(label)}--{content[:16]}.npz").resolve()
    file.parent.mkdir(exist_ok=True)
    images.save(file)
    attack = StoredImages(norm=norm, sha256=content, file=file)
    return AttackChoice("stored-images", label, attack, (eps,)), tuple(map(int, images.indices))


def _known(given: Namespace, meta: Mapping[str, object], key: str) -> object:
    """Return the value of an argument, or else that in the file of images; raises InputError if neither has one."""
    value = vars(given)[key]  # the keys of the file have the names of the arguments
    if value is None and key not in meta:
        raise InputError(f"--{key}: missing; give it, because {given.images} doesn't hold it")
    found = meta[key] if value is None else value
    if isinstance(found, bool):
        raise InputError(f"{given.images}: meta: {key} is {json.dumps(found)}; give a number or a text")
    return found


def _text(file: Path, meta: Mapping[str, object], key: str) -> str:
    """Return a text of the file's metadata; raises InputError where it is none, or cannot be a part of a label."""
    value = meta[key]
    if not isinstance(value, str) or len(value) > LONGEST or not is_printable(value):
        shown = shortened(json.dumps(value))
        raise InputError(f"{file}: meta: {key} is {shown}; give a text of at most {LONGEST} printable characters")
    return value


def _name(given: Namespace, meta: Mapping[str, object], key: str) -> str:
    """Return the value of `_known`; raises InputError if it is no name."""
    value = _known(given, meta, key)
    if not isinstance(value, str):
        raise InputError(f"--{key}: {value!r} in {given.images} is no name")
    return value


def validity(results: Results) -> list[str]:
    """Return a line for each set of images of which some are not valid, with the number of each `fault_of`."""
    lines = []
    for label, rows in results.records[results.records["kind"] == "attack"].groupby("attack", sort=False):
        rows = rows.drop_duplicates("sample")
        if not rows["valid"].all() and (rows["status"] == "ok").all():
            faults = rows.loc[~rows["valid"]].apply(fault_of, axis=1).value_counts()
            counts = ", ".join(f"{count} {fault}" for fault, count in faults.items())
            line = f"{label}: {faults.sum()} of {len(rows)} images count as no success: {counts}"
            lines.append("; ".join([line, *(ADVICE[fault] for fault in faults.index if fault in ADVICE)]))
    return lines


def fault_of(row: pd.Series) -> str:
    """Return why the image of a record is not valid; one that is too far may also be not in [0,1]."""
    if not math.isfinite(row["linf"]):
        return "not finite"
    norm, eps = row["norm"], row["eps"]
    if norm not in DISTANCES or row[norm] <= allowed(norm, eps):
        return "not in [0,1]"
    return ROUNDED if norm == "linf" and row[norm] <= allowed(norm, eps + 0.5 / LEVELS) else FAR
