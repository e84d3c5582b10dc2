"""The command `manifold-bench train`: train a defense, as in `train --dataset mnist --defense gmvae --set alpha=50`.

Trainings are seeded, and the same command continues an interrupted training after its last complete epoch.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from manifold_bench.bench.arguments import Parser, natural
from manifold_bench.bench.errors import InputError, report_errors
from manifold_bench.bench.planning.folders import data_folder
from manifold_bench.bench.running.environment import choose_kernels, ensure_home
from manifold_bench.defenses.identity import JsonObject

if TYPE_CHECKING:
    from manifold_bench.bench.planning.refs import DefenseRef, TrainedRef


def parser() -> Parser:
    """Return the parser of this command's arguments."""
    p = Parser(
        prog="manifold-bench train",
        description="Train a defense. The same command again continues an interrupted training.",
        epilog="Exit codes: 0 done, 1 the training failed, 2 bad input.",
    )
    p.add_argument("--dataset", required=True, metavar="NAME", help="data set to train on")
    defenses = "defense to train: a name, file.py:Name, or package.module:Name"
    p.add_argument("--defense", required=True, metavar="NAME", help=defenses)
    parameter = "set a parameter of the defense, as in a matrix file (repeatable)"
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="parameters", help=parameter)
    part = "train only this part of the defense, which other defenses may share: generator, classifier, …"
    p.add_argument("--part", default="", metavar="NAME", help=part)
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of data files (default: $MANIFOLD_BENCH_DATA)")
    p.add_argument("--seed", type=natural, default=0, metavar="N", help="seed of the training (default 0)")
    budget = "share of the full training, in (0, 1] (default 1)"
    p.add_argument("--budget", type=float, default=1.0, metavar="SHARE", help=budget)
    p.add_argument("--device", default="cpu", help="device to compute on: cpu (default), cuda, cuda:1, …")
    p.add_argument("--out", type=Path, metavar="FILE", help="path of the .safetensors file (default: in the cache)")
    p.add_argument("--quiet", action="store_true", help="show nothing but the path of the weights")
    return p


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 if a training failed."""
    given = parser().parse_args(arguments)
    ensure_home()
    choose_kernels()
    # late: `--help` does not wait for torch, and kernels have to be chosen before torch computes
    from manifold_bench.bench.running.engines.fork_server import serving

    with serving():
        return train(given)


def train(given: Namespace) -> int:
    """Train what the arguments name; return 0, or 1 if a training failed. Raises InputError."""
    # late: as in `main`
    from manifold_bench.bench.planning.reading import defense_by_name
    from manifold_bench.bench.planning.refs import DatasetRef, cache_file, defense_ref
    from manifold_bench.bench.running.devices import checked_device
    from manifold_bench.bench.running.engines.local import LocalEngine
    from manifold_bench.bench.running.training import train_with_parts, training_of
    from manifold_bench.bench.terminal import Terminal

    if not 0 < given.budget <= 1:
        raise InputError(f"--budget: {given.budget} is not allowed; give a share in (0, 1]")
    if given.out and given.out.suffix != ".safetensors":
        raise InputError(f"--out: {given.out} does not end in .safetensors; give such a file name")
    choice = defense_by_name(given.defense, parameters(given.parameters), "--set")
    dataset = DatasetRef(given.dataset, data_folder(given.data))
    data = dataset.load()
    ref = defense_ref(choice, data)
    own = trainable(ref, given.part)
    target = given.out or cache_file(own, data, given.seed, given.budget)
    device = checked_device(given.device)
    own_training = training_of(ref, given.part, dataset, device, path=target, seed=given.seed, budget=given.budget)
    parts = [".".join(filter(None, (given.part, part))) for part in own.untrained if part]
    trainings = [*(training_of(ref, part, dataset, device) for part in parts), own_training]
    with LocalEngine(1) as engine:
        if not train_with_parts(trainings, engine, Terminal(), given.quiet):
            return 1
    print(f"weights: {target}")
    return 0


def parameters(given: Sequence[str]) -> JsonObject:
    """Parse `--set key=value` as parameters of a defense's spec; a value that is not JSON is a text.

    Raises InputError.
    """
    found: JsonObject = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not (key and equals):
            raise InputError(f"--set: {item!r} is not key=value; write it as in --set alpha=50")
        if key in found:
            raise InputError(f"--set: {key!r} is set twice; give it once")
        try:
            found[key] = json.loads(text)
        except (ValueError, RecursionError):
            found[key] = text
    return found


def trainable(ref: DefenseRef, part: str) -> TrainedRef:
    """Return the part of the defense that --part names, or the defense itself for ""; raises InputError."""
    try:
        own = ref.part(part)
    except KeyError as error:
        parts = ", ".join(ref.parts) or "none"
        raise InputError(f"--part: {part!r} is no part of {ref.label!r}; it has {parts}") from error
    if own.weights is None:
        raise InputError(f"{own.title_prefix}{ref.label!r} learns nothing, so that there is nothing to train")
    return own


if __name__ == "__main__":
    sys.exit(main())
