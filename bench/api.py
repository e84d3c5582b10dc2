"""The Python interface: what the command line does, for models and data that are objects of a program."""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import Norm
from manifold_bench.bench import run as command
from manifold_bench.bench.datasets.given import dataset_of, labelled_images
from manifold_bench.bench.diagnosis.diagnose import diagnose
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.metrics.robustness import strongest, summary
from manifold_bench.bench.planning.matrix import AttackEntry
from manifold_bench.bench.planning.reading import attack_choice, validated
from manifold_bench.bench.planning.registry import handing_in
from manifold_bench.bench.records import results as records
from manifold_bench.bench.records.images import AdversarialImages, adversarial
from manifold_bench.bench.records.schema import CLEAN, WORST_CASE
from manifold_bench.bench.report.tables import implausible_cells
from manifold_bench.bench.report.verdict import verdicts
from manifold_bench.bench.report.writing import write_report
from manifold_bench.bench.running.judge import Inputs, Judge, verdict
from manifold_bench.bench.text import eps_of, eps_text
from manifold_bench.defenses import models
from manifold_bench.defenses.base import Defense, LabelledImages
from manifold_bench.defenses.errors import one_line

USAGE = ("normalize", "rejects", "randomized", "classes")
"""Options of `evaluate` that say how the model is used."""

GIVEN = "data"
"""Name of the data that `evaluate` is given."""

MODEL = "model"
"""Label of the model that `evaluate` is given."""


@dataclass(frozen=True, eq=False)
class Results:
    """What a run found, in a folder or read from one.

    In a notebook it shows itself as a table.
    """

    stored: records.Results
    temporary: tempfile.TemporaryDirectory[str] | None = None
    """The folder, where the program named none: it goes with this object."""

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.stored.folder

    @property
    def records(self) -> pd.DataFrame:
        """One row for each input of each cell (data set, defense, attack, norm, ε); see docs for the columns."""
        return self.stored.records

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row for each cell, and one for the worst case over the attacks of each defense: every figure."""
        return summary(self.records)

    @property
    def table(self) -> pd.DataFrame:
        """The worst case of each defense at each ε, in percent, with the attacks that alone leave the least.

        clean: accepted and right without an attack; rejected: of the clean inputs; robust: right when clean and never
        accepted and wrong under attack, with its 95 % interval; strict: never rejected under attack either.
        """
        rows = []
        for (dataset, defense), of_defense in self.summary.groupby(["dataset", "defense"]):
            clean = of_defense[of_defense["kind"] == CLEAN].iloc[0]
            for norm, attacked in of_defense[of_defense["kind"] != CLEAN].groupby("norm"):
                for _, worst in attacked[attacked["kind"] == WORST_CASE].iterrows():
                    shares = {
                        "clean": clean["accuracy"],
                        "rejected": clean["rejection"],
                        "robust": worst["robust_accuracy"],
                        "low": worst["robust_low"],
                        "high": worst["robust_high"],
                        "strict": worst["strict_robust_accuracy"],
                    }
                    single = of_defense[of_defense["norm"].isin([norm, clean["norm"]])]
                    rows.append(
                        {"dataset": dataset, "defense": defense, "norm": norm, "eps": worst["eps"], "n": worst["n"]}
                        | {name: round(100 * share, 1) for name, share in shares.items()}
                        | {"strongest": strongest(single, worst["eps"]).names}
                    )
        return pd.DataFrame(rows)

    @cached_property
    def verdict(self) -> str:
        """What the attacks leave of the defense that the run is about, how sure that is, and what to run next."""
        found = self.summary
        made = verdicts(self.stored, found, diagnose(self.stored), implausible_cells(found))
        return "\n\n".join(map(str, made)) or "The run names no defense: see the table."

    def adversarial(
        self,
        defense: str | None = None,
        attack: str | None = None,
        eps: float | str | None = None,
        *,
        dataset: str | None = None,
        norm: str | None = None,
        seed: int | None = None,
    ) -> AdversarialImages:
        """Return every image that was judged in one cell, with labels and indices; the run needs `export="folder"`.

        What is left out must be the same in all attacked cells. Raises InputError where no cell, or more than one, is
        meant, or its images were not kept.
        """
        try:
            size = eps_of(eps) if isinstance(eps, str) else eps
        except ValueError as error:
            raise InputError(f"eps: {error}") from error
        cell = {"dataset": dataset, "defense": defense, "attack": attack, "norm": norm, "eps": size, "seed": seed}
        return adversarial(self.stored, {name: value for name, value in cell.items() if value is not None})

    def report(self, folder: str | Path | None = None) -> Path:
        """Write tables, plots and pages into the run's folder, or into a copy of it; return the path of report.html."""
        stored = self.stored
        if folder is not None and Path(folder).resolve() != self.folder.resolve():
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
            stored = records.Results.load(Path(folder))
        write_report(stored)
        return stored.folder / "report.html"

    @property
    def _shown(self) -> pd.DataFrame:
        """The table with ε as text."""
        return self.table.assign(eps=[eps_text(eps) for eps in self.table["eps"]])

    def __repr__(self) -> str:
        return self._shown.to_string(index=False)

    def _repr_html_(self) -> str:
        return self._shown.to_html(index=False)


def load(folder: str | Path) -> Results:
    """Return the results in a run's folder. Raises InputError where there are none, or a file is damaged."""
    return Results(records.Results.load(Path(folder)))


def run(matrix: str | Path, *, defenses: Mapping[str, Any] | None = None, **options: Any) -> Results:
    """Run a matrix as the command `manifold-bench run` does, and return the results.

    matrix: a name (quick) or a TOML file. defenses: models under labels of their own, which run in place of the
    matrix' defenses; see `as_defense` for what a model may be. options: those of the command line by their long names
    (n=64, out="folder", attack=["pgd"], workers=2); without `out` the folder is temporary. Models that are handed over
    run in this process, one job after the other, and always anew.

    Raises InputError for what the command line would refuse.
    """
    temporary = None if options.get("out") else tempfile.TemporaryDirectory(prefix="manifold-bench-")
    options = {"quiet": True} | options | {"out": str(options.get("out") or temporary.name)}  # type: ignore[union-attr]
    with ExitStack() as stack:
        if defenses:
            classes = {name: _class_of(name, model) for name, model in defenses.items()}
            stack.enter_context(handing_in("defenses", classes))
            options = {"workers": 0} | options | {"defense": [*classes, *options.get("defense", ())]}
        command.run_command(["--matrix", str(matrix), *_arguments(options)])
    return Results(records.Results.load(Path(options["out"])), temporary)


def evaluate(
    model: Any,
    data: Any,
    *,
    attacks: Sequence[str | Mapping[str, Any]] = ("pgd", "autoattack"),
    norm: Norm = "linf",
    eps: float | str | Sequence[float | str],
    **options: Any,
) -> Results:
    """Attack a model and return how robust it is.

    model: whatever `as_defense` takes, or the name of a registered defense. data: the name of a registered data set, a
    pair (images [N,C,H,W] in [0,1], labels [N]) of tensors or arrays, or a folder that holds a folder of images for
    each class. attacks: names, or tables with a name and parameters ({"name": "pgd", "steps": 100}). norm, eps: the
    threat model: the perturbation is at most ε in that norm; a number, or a fraction ("8/255"). options: `normalize`,
    `rejects`, `randomized` and `classes` (number of classes) of the model, and those of `run`.

    Raises InputError for what cannot be evaluated.
    """
    usage = {name: options.pop(name) for name in USAGE if name in options}
    with ExitStack() as stack:
        if isinstance(data, str) and not Path(data).is_dir():
            name = data
        else:
            name, images = GIVEN, labelled_images(data)
            classes = usage.get("classes") or _number_of_classes(model, images, bool(usage.get("rejects")))
            stack.enter_context(handing_in("datasets", {name: dataset_of(name, images, classes)}))
        defense: dict[str, Any] = {"name": model} if isinstance(model, str) else {"name": MODEL}
        if not isinstance(model, str):
            randomized = bool(usage.get("randomized"))
            stack.enter_context(handing_in("defenses", {MODEL: _class_of(MODEL, model, randomized)}))
            defense |= {key: usage[key] for key in ("normalize", "rejects") if usage.get(key)}
        sizes = [eps] if isinstance(eps, (int, float, str)) else eps
        strength = {"norm": norm, "eps": [size if isinstance(size, str) else float(size) for size in sizes]}
        entries = [{"name": one} if isinstance(one, str) else dict(one) for one in attacks]
        content = {
            "datasets": [{"name": name}],
            "defenses": [defense],
            "attacks": [strength | entry for entry in entries],
        }
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="manifold-bench-"))
        matrix = Path(folder) / "evaluate.toml"
        matrix.write_text(toml(content), encoding="utf-8")
        return run(matrix, **{"workers": 0} | options)


@dataclass(frozen=True)
class Attacked:
    """Outputs of an attack. adversarial [N,C,H,W]; success [N]: accepted and wrong, within ε; distance [N]."""

    adversarial: Tensor
    success: Tensor
    distance: Tensor


def attack(
    name: str, model: Any, data: tuple[Any, Any], *, norm: Norm = "linf", eps: float | str, **parameters: Any
) -> Attacked:
    """Attack images with one attack, and have its outputs judged.

    model: as for `evaluate`. data: images [N,C,H,W] in [0,1] and labels [N]. parameters: of the attack. Raises
    InputError for an attack or a parameter that doesn't exist.
    """
    images = labelled_images(data)
    place = f"attack {name!r}"
    entry = validated(AttackEntry, {"name": name, "norm": norm, "eps": [eps], **parameters}, place, strict=None)
    choice = attack_choice(entry, place)
    chosen, largest = choice.attack, choice.eps[0]
    shape = (images.images.shape[1], images.images.shape[2], images.images.shape[3])
    defense = as_defense(model, shape, _number_of_classes(model, images, False))
    if reason := chosen.unsuited(defense):
        raise InputError(f"attack {name!r}: {reason}")
    x, y = images.images, images.labels
    inputs = Inputs(x, y, torch.full_like(y, -1), torch.arange(len(y)))
    clean = verdict(defense, x, y, 1, 0)
    size = float("inf") if chosen.minimal else largest
    found = chosen.run(Target(defense, len(x)), x.clone(), y.clone(), size, 0)
    judged = Judge(defense, norm, 1, 0).judge(inputs, clean, found, largest)
    return Attacked(found, judged.success, judged.distance(norm))


def as_defense(
    model: Any,
    shape: tuple[int, int, int],
    classes: int,
    *,
    normalize: Any = None,
    rejects: bool = False,
    randomized: bool = False,
) -> Defense:
    """Return a defense that answers as the model does; see `manifold_bench.defenses.models.as_defense`.

    shape: channels, height and width of the images. classes: number of classes. normalize: (mean, standard deviation),
    each a number or one for each channel, with which the model's inputs have to be normalized; otherwise it gets images
    in [0,1]. rejects: whether it has K+1 outputs, of which the last one is the reject score. randomized: whether its
    answers differ from call to call.
    """
    spec = models.ModelSpec(shape=shape, num_classes=classes, normalize=normalize, rejects=rejects)
    return models.as_defense(model, spec, randomized)


def _class_of(label: str, model: Any, randomized: bool = False) -> type[Defense]:
    """A class for the planner; no stored result is ever used again for it, because nothing tells its code."""
    try:
        cls = models.class_of(model, label, models.__name__, randomized)
    except TypeError as error:
        raise InputError(f"defense {label!r}: {error}") from error
    cls.version = uuid.uuid4().int >> 66  # of 62 bits
    return cls


def _number_of_classes(model: Any, images: LabelledImages, rejects: bool) -> int:
    """The number of classes that a model tells apart; that of the labels, for a registered defense."""
    if isinstance(model, str):
        return int(images.labels.max()) + 1
    if isinstance(model, Defense):
        return model.num_classes
    try:
        with torch.no_grad():
            return int(models.module_of(model)(images.images[:2]).shape[1]) - int(rejects)
    except Exception as error:  # it is a user's code: anything may happen
        name, shape = models.name_of(model), tuple(images.images[:2].shape)
        raise InputError(f"{name} fails on images of shape {shape}: {one_line(error)}") from error


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as the words of a command line."""
    words = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value else []
        else:
            several = [value] if isinstance(value, (str, int, float, Path)) else list(value)
            words += [word for one in several for word in (flag, str(one))]
    return words


def toml(content: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Tables of arrays as TOML: their values are written as JSON, which is TOML for numbers, texts, truth and lists."""
    lines = []
    for key, tables in content.items():
        for table in tables:
            lines += [f"[[{key}]]", *(f"{name} = {json.dumps(value)}" for name, value in table.items()), ""]
    return "\n".join(lines)
