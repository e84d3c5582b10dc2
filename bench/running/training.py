"""Train a defense or a part of one, and write its weights with their card."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifold_bench.bench.errors import InputError

if TYPE_CHECKING:
    from manifold_bench.bench.planning.refs import DatasetRef, DefenseRef, TrainedRef
    from manifold_bench.bench.records.log import Log


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

    from manifold_bench.bench.records.provenance import code_revision
    from manifold_bench.defenses import weights
    from manifold_bench.defenses.base import Progress

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

    from manifold_bench.defenses.base import DefenseSpec
    from manifold_bench.defenses.identity import parameters as parameters_of
    from manifold_bench.defenses.weights import spec_json

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
    from manifold_bench.bench.planning.refs import TRAINING_SEED

    own = ref.part(part)
    assert own.weights is not None
    train(
        own, dataset, own.weights, command=training_command(ref, dataset.name, TRAINING_SEED, 1.0, part),
        seed=TRAINING_SEED, device=device, tell=teller(log, own.weights, title),
    )  # fmt: skip


def teller(log: Log, path: Path, title: str) -> Callable[..., None]:
    """Writes a training's events to the log, by this process; its key is where the weights go."""
    return functools.partial(log.event, title=title, key=str(path), pid=os.getpid())


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
