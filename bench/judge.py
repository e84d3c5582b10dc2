"""The command `manifold-bench judge IMAGES --defense NAME`: judge adversarial images that were made elsewhere."""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifold_bench.bench.arguments import Parser, checked_device, natural, positive, size
from manifold_bench.bench.errors import InputError, report_errors
from manifold_bench.bench.planning.folders import data_folder
from manifold_bench.bench.running.environment import ensure_home
from manifold_bench.bench.text import norm_of

if TYPE_CHECKING:
    from manifold_bench.bench.datasets.base import Dataset
    from manifold_bench.bench.planning.made_elsewhere import Found
    from manifold_bench.bench.planning.matrix import AttackChoice
    from manifold_bench.bench.planning.plan import Plan
    from manifold_bench.bench.records.results import Results


def parser() -> Parser:
    """Return the parser of this command's arguments."""
    p = Parser(
        prog="manifold-bench judge",
        description="Judge adversarial images that were made elsewhere, as the outputs of an attack are judged. An "
        ".npz file of `run --export` holds the data set, norm and ε, so that they need not be given.",
        epilog="Exit codes: 0 done, 1 a defense failed, 2 bad input.",
    )
    files = "an .npz file of `run --export`; a .pt or .pth file with tensors (RobustBench, AutoAttack); or a folder of "
    files += "pictures, each named by the index of its test image (AutoAdvExBench: 0000.png)"
    p.add_argument("images", type=Path, metavar="IMAGES", help=files)
    defenses = "defense that answers the images (repeatable)"
    p.add_argument("--defense", action="append", required=True, metavar="NAME", help=defenses)
    p.add_argument("--dataset", metavar="NAME", help="data set whose test images were perturbed")
    p.add_argument(
        "--norm", type=norm_of, choices=("linf", "l2", "l1", "l0", "unrestricted"), help="norm of the perturbations"
    )
    p.add_argument("--eps", type=size, metavar="SIZE", help="largest allowed size of a perturbation: 0.3 or 8/255")
    p.add_argument("--label", metavar="TEXT", help="name of the images in tables (default: made from the file)")
    p.add_argument("--n", type=positive, metavar="N", help="judge only the first N images of the file")
    p.add_argument("--out", metavar="DIR", help="output folder (default: results/judged-IMAGES)")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of data files (default: MANIFOLD_BENCH_DATA)")
    workers = "number of parallel jobs (default: the number of cores; 0: all in this process)"
    p.add_argument("--workers", type=natural, metavar="N", help=workers)
    p.add_argument("--device", default="cpu", help="device that computes: cpu (default), cuda, cuda:1, …")
    p.add_argument("--quiet", action="store_true", help="show only failures and the last lines")
    p.set_defaults(engine="local")
    return p


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 if a defense failed."""
    given = parser().parse_args(arguments)
    ensure_home()
    given.out = given.out or str(Path("results") / f"judged-{given.images.stem}")
    # late, because --help should not wait for torch
    from manifold_bench.bench.records.files import check_files
    from manifold_bench.bench.records.log import LOG, Log
    from manifold_bench.bench.run import chosen_engine, print_ending, report_of, report_page, shown_report, writing
    from manifold_bench.bench.running.board import Board, clock
    from manifold_bench.bench.running.execution import execute
    from manifold_bench.bench.running.locks import run_folder
    from manifold_bench.bench.running.session import Session
    from manifold_bench.bench.terminal import terminal

    folder, console, begun = Path(given.out), terminal(), time.time()
    check_files(folder)
    with run_folder(folder):
        plan = planned(given, folder)
        with chosen_engine(given) as engine:
            board = Board(console, engine.workers, Log(folder / LOG), given.quiet)
            ended = execute(plan, Session(folder, engine, board))
        with writing(console, given.quiet):
            report = report_of(ended.results)
        shown_report(report, console, given.quiet)
        for line in validity(ended.results):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        ending = f"{ended.counts}, {clock(time.time() - begun)} min; open {report_page(given)}"
        print_ending(ending, console)
    return 1 if ended.failed else 0


def planned(given: argparse.Namespace, folder: Path) -> Plan:
    """Return a plan whose attacks return the given images, and store these in the run's folder; raises InputError."""
    from manifold_bench.bench.planning.made_elsewhere import read
    from manifold_bench.bench.planning.matrix import DatasetEntry, Matrix
    from manifold_bench.bench.planning.plan import Options, make_plan
    from manifold_bench.bench.planning.reading import check_labels, defense_by_name
    from manifold_bench.bench.planning.refs import DatasetRef

    sets = read(given.images)
    meta = {} if len(sets) > 1 else dict(next(iter(sets.values())).meta or {})
    name, device = _known(given, meta, "dataset"), checked_device(given.device)
    dataset = DatasetRef(name, data_folder(given.data)).load()
    made = [_choice(one, label, dataset, given, folder) for label, one in sets.items()]
    if len({indices for _, indices in made}) > 1:
        raise InputError(f"{given.images}: its sets of images belong to different test images; give one file for each")
    check_labels("--label", [choice.label for choice, _ in made])
    matrix = Matrix(
        source=str(given.images),
        datasets=(DatasetEntry(name=name, n=1),),
        defenses=tuple(defense_by_name(one) for one in dict.fromkeys(given.defense)),
        attacks=tuple(choice for choice, _ in made),
        seeds=(0,),
        draws=1,
        timeout=4 * 3600.0,
    )
    plan = make_plan(matrix, Options(data_folder(given.data), None, device), named={"defenses": list(given.defense)})
    return replace(plan, data=tuple(replace(one, indices=made[0][1]) for one in plan.data))


def _choice(
    found: Found, name: str, dataset: Dataset, given: argparse.Namespace, folder: Path
) -> tuple[AttackChoice, tuple[int, ...]]:
    """Return an attack that returns a set of images, and the indices of the test images that they belong to.

    name: name of the set in its file; empty if there is only one.
    """
    from manifold_bench.bench.planning.made_elsewhere import first, matched
    from manifold_bench.bench.planning.matrix import AttackChoice
    from manifold_bench.bench.planning.sizes import check_size
    from manifold_bench.bench.records.images import FOLDER
    from manifold_bench.bench.records.store import file_name
    from manifold_bench.bench.running.stored_images import StoredImages

    images = matched(first(found, given.n), dataset, given.images)
    made_on = [images.meta[key] for key in ("attack", "defense") if key in images.meta]
    label = given.label or (" on ".join(made_on) if made_on else given.images.stem)
    label = f"{label}: {name}" if name else label
    norm = _known(given, images.meta, "norm")
    if norm not in StoredImages.norms:
        raise InputError(f"--norm: {norm!r} is not allowed; give {', '.join(StoredImages.norms)}")
    eps = math.inf if norm == "unrestricted" else _known(given, images.meta, "eps")
    if norm != "unrestricted":
        check_size("--eps", norm, eps, dataset.shape)
    content = hashlib.sha256(images.images.tobytes() + images.inputs.tobytes()).hexdigest()
    file = (folder / FOLDER / f"{file_name(label)}--{content[:16]}.npz").resolve()
    file.parent.mkdir(exist_ok=True)
    images.save(file)
    attack = StoredImages(norm=norm, sha256=content, file=file)
    return AttackChoice("stored-images", label, attack, (eps,)), tuple(map(int, images.indices))


def _known(given: argparse.Namespace, meta: Mapping[str, Any], key: str) -> Any:
    """Return the value of an argument, or else that in the file of images; raises InputError if neither has one."""
    value = getattr(given, key)  # the keys of the file have the names of the arguments
    if value is None and key not in meta:
        raise InputError(f"--{key}: missing; give it, because {given.images} doesn't hold it")
    value = meta[key] if value is None else value
    if key != "eps" and not isinstance(value, str):
        raise InputError(f"--{key}: {value!r} in {given.images} is no name")
    return value


def validity(results: Results) -> list[str]:
    """Return a line for each set of images of which some are not finite, not in [0,1] or not within ε."""
    lines = []
    for label, rows in results.records[results.records["kind"] == "attack"].groupby("attack", sort=False):
        rows = rows.drop_duplicates("sample")
        if not rows["valid"].all() and (rows["status"] == "ok").all():
            count = f"{int((~rows['valid']).sum())} of {len(rows)}"
            fault = "are not finite, not in [0,1], or farther than ε from the test image, and count as no success"
            lines.append(f"{label}: {count} images {fault}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
