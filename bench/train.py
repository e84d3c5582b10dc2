"""Training a defense: `python -m bench.train --dataset mnist --defense gmvae --set alpha=50 --data DIR`.

Seeded, and resumable: the same command goes on after the last complete epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.arguments import checked_device, data_folder, natural
from bench.environment import choose_kernels
from bench.errors import InputError, report_errors

if TYPE_CHECKING:
    from bench.log import Log
    from bench.plan import DatasetRef, DefenseRef, TrainedRef


def train(
    ref: TrainedRef,
    dataset: DatasetRef,
    path: Path,
    *,
    command: str,
    seed: int,
    budget: float = 1.0,
    device: str = "cpu",
    tell: Callable[..., None] = lambda event, **fields: None,
) -> None:
    """Trains on a data set and writes weights and card to `path`; checkpoints lie beside it meanwhile.

    The parts are trained already. command: what does this, for the card. tell: takes the events of the training, as
    `Log.event` does.
    """
    import shutil

    import torch

    from bench.provenance import code_revision
    from defenses import weights
    from defenses.base import Progress

    class Reporting(Progress):
        checkpoints = path.with_suffix(".checkpoints")

        def epoch(self, stage: str, done: int, epochs: int, **figures: float) -> None:
            tell("training epoch", stage=stage, epoch=done, epochs=epochs, figures=figures)

    tell("training started")
    torch.set_num_threads(1)  # more threads sum in another order: the same seed would give other weights
    data = dataset.load()
    Reporting.checkpoints.mkdir(parents=True, exist_ok=True)
    ref = ref.with_trained_parts()
    module = ref.build()
    for name, part in ref.parts.items():
        part.fill(getattr(module, name))
    module.to(device)
    figures = module.fit(data.train, data.validation, budget, seed, Reporting())
    module = weights.freeze(module).cpu()
    card = weights.Card(
        name=ref.system.name,
        source_sha256=ref.system.source_sha256,
        version=ref.cls.version,
        spec=weights.spec_json(ref.spec),
        data=data.zoo,
        revision=data.revision,
        seed=seed,
        budget=budget,
        command=command,
        code=code_revision(),
        torch=torch.__version__,
        figures={name: round(value, 6) for name, value in figures.items()},
        weights_sha256=weights.weights_hash(module),
        parts={name: weights.weights_hash(getattr(module, name)) for name in ref.parts},
    )
    weights.save(module, card, path)
    shutil.rmtree(Reporting.checkpoints)


def training_command(ref: DefenseRef, dataset: str, seed: int, budget: float, part: str = "") -> str:
    """The command that trains a defense, or that part of it: what of its spec isn't the default is set."""
    import json
    import shlex

    from defenses.base import DefenseSpec
    from defenses.identity import parameters as parameters_of
    from defenses.weights import spec_json

    words = ["python", "-m", "bench.train", "--dataset", dataset, "--defense", ref.name]
    words += ["--part", part] if part else []
    of_the_data = {field.name for field in dataclasses.fields(DefenseSpec)}
    values = spec_json(ref.spec)
    for name in parameters_of(ref.spec):
        if name not in of_the_data:
            words += ["--set", f"{name}={json.dumps(values[name])}"]
    return shlex.join([*words, "--seed", str(seed), "--budget", f"{budget:g}"])


def parameters(given: Sequence[str]) -> dict[str, Any]:
    """`--set key=value` as parameters of the spec: values are JSON, and texts where they aren't."""
    import json

    found: dict[str, Any] = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not (key and equals):
            raise InputError(f"--set: {item!r} is not key=value")
        if key in found:
            raise InputError(f"--set: {key!r} is set twice")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def fit_job(ref: DefenseRef, part: str, dataset: DatasetRef, device: str, log: Log, title: str) -> None:
    """Trains a defense that a run needs, or the named part of it, in a worker; the weights go to the cache."""
    from bench.plan import TRAINING_SEED

    own = ref.part(part)
    assert own.weights is not None
    train(
        own, dataset, own.weights, command=training_command(ref, dataset.name, TRAINING_SEED, 1.0, part),
        seed=TRAINING_SEED, device=device, tell=teller(log, own.weights, title),
    )  # fmt: skip


def teller(log: Log, path: Path, title: str) -> Callable[..., None]:
    """Writes a training's events to the log, by this process; its key is where the weights go."""
    return functools.partial(log.event, title=title, key=str(path), pid=os.getpid())


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench.train", description="Train a defense from scratch.")
    p.add_argument("--dataset", required=True, metavar="NAME", help="data set to train on")
    p.add_argument("--defense", required=True, metavar="NAME", help="defense, or package.module:Name")
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="parameters",
        help="a parameter of the defense, as in a matrix file (repeatable)",
    )  # fmt: skip
    p.add_argument(
        "--part", default="", metavar="NAME",
        help="train only that part of the defense, which others may share: generator, classifier, …",
    )  # fmt: skip
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of the data files (default: MANIFOLD_BENCH_DATA)")
    p.add_argument("--seed", type=natural, default=0, metavar="N")
    p.add_argument("--budget", type=float, default=1.0, help="share of the full training, in (0, 1] (default 1)")
    p.add_argument("--device", default="cpu")
    p.add_argument("--out", type=Path, metavar="FILE", help="where to write the .safetensors (default: the cache)")
    p.add_argument("--quiet", action="store_true", help="show nothing but where the weights are")
    return p


def asked(ref: DefenseRef, part: str) -> TrainedRef:
    """What is to be trained: the defense, or that part of it; raises InputError."""
    try:
        own = ref.part(part)
    except KeyError as error:
        parts = ", ".join(ref.parts) or "none"
        raise InputError(f"--part: {part!r} is no part of {ref.label!r}; it has {parts}") from error
    if own.weights is None:
        raise InputError(f"{own.told}{ref.label!r} learns nothing: there is nothing to train")
    return own


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    choose_kernels()
    from rich.console import Console

    from bench.log import Log
    from bench.matrix import defense_by_name
    from bench.plan import TRAINING_SEED, DatasetRef, cache_file, defense_ref
    from bench.progress import Board, Work
    from bench.provenance import provenance
    from bench.registry import one_line

    if not 0 < options.budget <= 1:
        raise InputError(f"--budget: {options.budget} is not allowed; give a share in (0, 1]")
    if options.out and options.out.suffix != ".safetensors":
        raise InputError(f"--out: {options.out} does not end in .safetensors")
    choice = defense_by_name(options.defense, parameters(options.parameters), "--set")
    dataset = DatasetRef(options.dataset, data_folder(options.data))
    data = dataset.load()
    ref = defense_ref(choice, data)
    own = asked(ref, options.part)
    path = options.out or cache_file(own, data, options.seed, options.budget)
    device = checked_device(options.device)
    trainings = {part: before for part, before in own.untrained.items() if part} | {"": own}
    titles = {part: f"{own.part(part).told}{ref.label} on {dataset.name}" for part in trainings}
    targets = {part: before.weights if part else path for part, before in trainings.items()}
    log = Log(path.with_suffix(".log.jsonl"))
    log.event("run started", **provenance())
    with Board(Console(), 1, log, options.quiet) as board:
        board.expect({str(targets[part]): Work("training", title) for part, title in titles.items()})
        for part, title in titles.items():
            full = ".".join(filter(None, (options.part, part)))
            seed, budget = (TRAINING_SEED, 1.0) if part else (options.seed, options.budget)
            target = targets[part]
            assert target is not None
            try:
                train(
                    own.part(part), dataset, target, seed=seed, budget=budget, device=device,
                    command=training_command(ref, data.name, seed, budget, full), tell=teller(log, target, title),
                )  # fmt: skip
            except Exception as error:
                board.done(str(target), one_line(error))
                raise
            board.done(str(target), None)
    log.event("run finished", jobs=len(trainings), failed=0, skipped=0, memory=board.peak)
    print(f"weights: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
