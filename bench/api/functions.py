"""The Python interface: what the command line does, for models and data that are objects of a program."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
import warnings
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from manifold_bench.attacks.threat import UNBOUNDED, Norm
from manifold_bench.bench.api.callers import argument, called_by_a_program
from manifold_bench.bench.api.model import resolved
from manifold_bench.bench.api.named import argument_of, by_name
from manifold_bench.bench.api.one_attack import Attacked, attack_once
from manifold_bench.bench.api.options import (
    EVALUATION,
    USAGE,
    EvaluationOptions,
    arguments,
    check_names,
    check_plain,
    entries_of,
    in_python,
    pair,
    several,
    shown,
    usage_of,
)
from manifold_bench.bench.api.usual import UNNAMED, usual_attacks
from manifold_bench.bench.datasets.checks import fault_of_labels
from manifold_bench.bench.datasets.given import dataset_of, images_and_classes, labelled_images
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.evaluation.start import start
from manifold_bench.bench.planning.matrix import AttackEntry
from manifold_bench.bench.planning.reading import attack_choice, validated
from manifold_bench.bench.planning.registry import find, handing_in
from manifold_bench.bench.planning.sizes import check_size, sizes_of
from manifold_bench.bench.planning.toml import toml, written
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.bench.records.schema import GIVEN
from manifold_bench.bench.report.results import Results, load
from manifold_bench.bench.running.judge import with_checks
from manifold_bench.bench.text import norm_of
from manifold_bench.defenses import models
from manifold_bench.defenses.base import Defense, LabelledImages
from manifold_bench.defenses.errors import message_of
from manifold_bench.defenses.identity import JsonObject, registered

MODEL = "model"
"""Label of the model that `evaluate` is given."""


@overload
def run(
    matrix: str | Path, *, defenses: Mapping[str, object] | None = None, dry_run: Literal[False] = False, **options: Any
) -> Results: ...


@overload
def run(
    matrix: str | Path, *, defenses: Mapping[str, object] | None = None, dry_run: Literal[True], **options: Any
) -> None: ...


@called_by_a_program('mb.run("quick", defenses={"mine": model}, n=64)')
def run(
    matrix: str | Path, *, defenses: Mapping[str, object] | None = None, dry_run: bool = False, **options: Any
) -> Results | None:
    """Run a matrix as the command `manifold-bench run` does, and return the results.

    matrix: a name (quick) or a TOML file. defenses: models under labels of their own, which run in place of those of
    the file; see `as_defense` for what a model may be. To set options of a model, give a dict with the model,
    {"model": net, "rejects": True, "draws": 10}; it takes the options of `evaluate` other than `classes`. dry_run:
    whether to print the jobs with their passes and their time, run nothing, and return None. options: those of the
    command line by their long names (n=64, out="folder", attack=["pgd"], workers=2); without `out` the folder is
    temporary. Models that are handed over run in this process, one job after the other, and always anew.

    Raises InputError for what the command line would refuse.
    """
    with argument("matrix"):
        if not isinstance(matrix, (str, os.PathLike)):
            raise InputError(f"matrix: {shown(matrix)} is no matrix; give a name such as quick, or a TOML file")
        matrix = str(matrix)
    with argument("out"):
        temporary = options.get("out") is None
        if not (temporary or isinstance(options["out"], (str, os.PathLike))):
            raise InputError(f"out: expected the path of a folder, not {type(options['out']).__name__}")
        folder = tempfile.mkdtemp(prefix="manifold-bench-") if temporary else str(options["out"])
    options = {"quiet": True, "dry_run": dry_run} | _given(options) | {"out": folder}
    with ExitStack() as until_loaded:
        if temporary:
            until_loaded.callback(shutil.rmtree, folder, ignore_errors=True)
        with argument("defenses"):
            if not isinstance(defenses, (Mapping, type(None))):
                raise InputError('defenses: give models under labels of their own, as {"mine": model}')
            models_given = {str(label): model for label, model in (defenses or {}).items()}
            tables, classes, objects = {}, {}, False
            for label, model in models_given.items():
                with argument(f"defenses[{label!r}]"):
                    tables[label] = _table(label, model)
                    given = resolved(tables[label].pop("model"), f"defenses[{label!r}]")
                    objects |= not isinstance(given, str)
                    classes[label] = _class_of(label, given, tables[label].pop("randomized", False))
            if classes:
                if objects:
                    _check_workers(options, "models")
                named = [*classes, *several(options.get("defense", ()))]
                options = {"workers": 0} | options | {"defense": named}
        with handing_in("defenses", classes, tables):
            try:
                start(arguments(matrix, options), temporary)
            except InputError as error:
                raise InputError(in_python(str(error))) from error.__cause__
        if dry_run:
            return None
        result = load(folder)
        until_loaded.pop_all()
    if temporary:
        weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
    return result


@called_by_a_program(
    'mb.evaluate(model, (images, labels), attacks=["pgd"], eps=0.1); the folder of data files is named by the '
    "environment variable MANIFOLD_BENCH_DATA"
)
def evaluate(
    model: object,
    data: object,
    *,
    attacks: Sequence[str | Mapping[str, object]] = UNNAMED,
    norm: Norm = "linf",
    eps: float | str | Sequence[float | str] | None = None,
    **further: Unpack[EvaluationOptions],
) -> Results:
    """Attack a model and return how robust it is.

    model: whatever `as_defense` takes, or a name as on the command line. data: the name of a registered data set, which
    comes before a folder of that name; a pair (images [N,C,H,W] in [0,1], labels [N]) of tensors, arrays or lists; a
    `torch.utils.data.Dataset` of such pairs; or a folder that holds a folder of images for each class. attacks: names,
    or tables with a name and parameters ({"name": "pgd", "steps": 100}); by default PGD and AutoAttack, or attacks by
    queries on a model without gradients. norm, eps: the threat model: the perturbation is at most ε in that norm, a
    number or a fraction ("8/255"). further: `normalize`, `rejects`, `randomized` with `draws` (number of answers to
    each input that are judged) and `classes` (number of classes) of the model; `n`, the number of images, `budget`
    ("10min"), `diagnose`, and the other options of `run`.

    Raises InputError for what cannot be evaluated, in one line that says what is allowed.
    """
    options: dict[str, Any] = dict(further)
    check_names(options, EVALUATION)
    with argument("eps"):
        sizes = sizes_of(eps)
    with argument("attacks"):
        entries = entries_of(attacks)
    usage = {name: value for name in USAGE if (value := usage_of(name, options.pop(name, None))) is not None}
    with argument("model"):
        model, randomized = resolved(model), bool(usage.get("randomized"))
        if isinstance(model, str) and randomized:
            raise InputError(f"randomized: {model!r} is a name; leave it out, or set `randomized = True` in its class")
        cls = _class_of(MODEL, model, randomized)
    if not isinstance(model, str):
        _check_workers(options, "models")
    check_plain("norm", norm)
    with argument("norm"):
        spelled = norm_of(norm)
    with ExitStack() as stack:
        with argument("data"):
            named = isinstance(data, str) and (data in registered("datasets") or not Path(data).is_dir())
            name, (images, known) = (str(data), (None, None)) if named else (GIVEN, images_and_classes(data))
        if images is None and "classes" in usage:
            raise InputError(f"classes: the data set {name!r} says it itself; leave it out")
        if images is not None:
            with argument("model"):
                classes = usage.get("classes") or known or _number_of_classes(cls, images, "rejects" in usage)
            stack.enter_context(handing_in("datasets", {name: dataset_of(name, images, classes)}))
            _check_workers(options, "data")
        defense: dict[str, object] = {"name": model} if isinstance(model, str) else {"name": MODEL, "label": MODEL}
        defense |= {key: usage[key] for key in ("rejects", "draws", "normalize") if key in usage}
        if not isinstance(model, str):
            stack.enter_context(handing_in("defenses", {MODEL: cls}))
        entries = usual_attacks(cls, name, str(spelled)) if attacks is UNNAMED else entries
        strength = {"norm": spelled, "eps": sizes}
        content: dict[str, list[dict[str, object]]] = {
            "datasets": [{"name": name}],
            "defenses": [defense],
            "attacks": [strength | entry for entry in entries],
        }
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="manifold-bench-"))
        matrix = Path(folder) / "evaluate.toml"
        matrix.write_text(toml(content), encoding="utf-8")
        try:
            return run(matrix, **{"workers": 0} | _given(options))
        except InputError as error:
            said = str(error).removeprefix(f"{matrix}: ")  # nobody knows that file
            raise InputError(argument_of(said, entries)) from error.__cause__


@called_by_a_program('mb.attack("pgd", model, (images, labels), norm="linf", eps=0.1)')
def attack(
    name: str,
    model: object,
    data: tuple[object, object],
    *,
    norm: Norm = "linf",
    eps: float | str | None = None,
    **parameters: object,
) -> Attacked:
    """Attack images with one attack, and have its outputs judged.

    model: as for `evaluate`. data: images [N,C,H,W] in [0,1] and labels [N]. parameters: of the attack. Raises
    InputError for an attack or a parameter that doesn't exist, and where the model or the attack fails. Warns where the
    answers of a model that is not said to be randomized differ from call to call, from batch to batch or while a
    gradient is computed, and where the attack stopped trying. A randomized model is judged on one draw, so that some
    successes may be luck; `evaluate` judges on several.
    """
    with argument("data"):
        images = labelled_images(data)
    with argument("eps"):
        given = {} if eps is None else {"eps": sizes_of(eps)}
    with argument("name"):
        if not isinstance(name, str):
            how = by_name("attacks", name) or f"{shown(name)} is no name; give the name of an attack, such as pgd"
            raise InputError(f"name: {how}")
    for key in AttackEntry.model_fields:
        if key in parameters:
            raise InputError(f"{key}: no such option, because all of the images are attacked once; leave it out")
    with argument("attack"):
        asked = {"name": name, "norm": norm, **given, **parameters}
        for key, one in asked.items():
            check_plain(key, one)
        asked = {key: json.loads(written(key, one)) for key, one in asked.items()}
        place = f"attack {asked['name']!r}"
        entry = validated(AttackEntry, asked, place, strict=None)
        choice = attack_choice(entry, place)
    if len(choice.eps) != 1:
        raise InputError(f"{place}: eps: {len(choice.eps)} sizes are given; give one, or use evaluate")
    chosen, norm, largest = choice.attack, choice.attack.norm, choice.eps[0]
    with argument("model"):
        attacked, judging = _built(model, images)
    if norm not in UNBOUNDED:
        check_size(f"{place}: eps", norm, largest, judging.spec.shape)
    with argument(f"{place}: unsuited()"):
        if reason := chosen.unsuited(attacked):
            raise InputError(f"{place}: {reason}")
    with contained(f"{place} on {type(judging).__name__} fails", in_time=False):
        found, odd = attack_once(chosen, largest, attacked, judging, images)
    for sentence in odd:
        warnings.warn(f"{type(judging).__name__}: {sentence}", stacklevel=3)
    return found


@called_by_a_program("mb.as_defense(model, (3, 32, 32), 10, rejects=False), with the images' shape and the classes")
def as_defense(
    model: object,
    shape: tuple[int, int, int],
    classes: int,
    *,
    normalize: object = None,
    rejects: bool = False,
    randomized: bool = False,
) -> Defense:
    """Return a defense that answers as the model does; see `manifold_bench.defenses.models.as_defense`.

    shape: channels, height and width of the images. classes: number of classes. normalize: (mean, standard deviation),
    each a number or one for each channel, with which the model's inputs have to be normalized; otherwise it gets images
    in [0,1]. rejects: whether it has K+1 outputs, of which the last one is the reject score. randomized: whether its
    answers differ from call to call.

    Raises InputError for what is no model of such images.
    """
    asked = {"normalize": normalize, "rejects": rejects, "randomized": randomized}
    usage = {name: value for name, one in asked.items() if (value := usage_of(name, one)) is not None}
    drawn = usage.pop("randomized", False)
    with argument("shape, classes"):
        sizes = (*shape, classes)
        if len(sizes) != 4 or not all(type(one) is int and one > 0 for one in sizes):
            raise InputError("as_defense: give (channels, height, width) and the number of classes, as (3, 32, 32), 10")
        spec = models.ModelSpec(shape=sizes[:3], num_classes=classes, **usage)
    with argument("model"):
        try:
            return models.as_defense(_object(model), spec, drawn)
        except (TypeError, ValueError) as error:
            raise InputError(f"model: {message_of(error)}") from error


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without those that are None, which means the default."""
    return {name: value for name, value in options.items() if value is not None}


def _check_workers(options: Mapping[str, object], given: str) -> None:
    """Check that no worker processes are requested for objects that exist in this process alone; raises InputError.

    given: kind of the objects, "models" or "data".
    """
    values = [str(one) for one in several(options.get("workers", 0))]
    if len(values) == 1 and values[0] not in ("0", "None"):  # several are refused later
        named = {"models": "file.py:Name or file.py:Name@weights", "data": "a registered name or module:Class"}[given]
        raise InputError(
            f"workers: {given} cannot be sent to other processes as objects; leave it out, or name {named}"
        )


def _table(label: str, given: object) -> JsonObject:
    """Return a model of `run` with its settings, and the key `model`; raises InputError."""
    if not isinstance(given, Mapping):
        return {"model": given}
    table, place = dict(given), f"defenses[{label!r}]"
    if "model" not in table:
        raise InputError(f'{place}: the table has no model; give {{"model": model, "rejects": True}}')
    model = resolved(table.pop("model"), place)
    randomized = bool(usage_of("randomized", table.pop("randomized", None)))
    if "classes" in table:
        raise InputError(f"{place}: classes: the data set of a matrix says it itself; leave it out")
    if isinstance(model, str) and randomized:
        raise InputError(f"{place}: randomized: {model!r} has to say it itself, by an attribute `randomized = True`")
    if table.get("normalize") is not None:
        table["normalize"] = pair(table["normalize"])
    for key, one in table.items():
        check_plain(f"{place}: {key}", one)
    settings = {key: json.loads(written(f"{place}: {key}", one)) for key, one in table.items() if one is not None}
    return {**settings, "model": model, "randomized": randomized}


def _object(model: object) -> object:
    """Return a model as an object, loaded if a name is given; raises InputError for a defense that has to be built."""
    model = resolved(model)
    if not isinstance(model, str):
        return model
    made = models.handed(find("defenses", model))
    if made is None:
        raise InputError(f"{model!r} is built for a data set; use evaluate, or give an instance")
    return made.given


def _built(model: object, images: LabelledImages) -> tuple[Defense, Defense]:
    """Return a model as two defenses of these images, which are copies; raises InputError for what does not suit."""
    cls = _class_of(MODEL, _object(model))
    channels, height, width = images.images.shape[1:]
    spec = cls.Spec(shape=(channels, height, width), num_classes=_number_of_classes(cls, images, False))
    try:
        models.check_suits(cls, spec)
    except ValueError as error:
        raise InputError(f"model: {message_of(error)}") from error
    made = models.in_evaluation_mode(cls(spec), cls.__name__)
    return with_checks(made), with_checks(cls(spec).eval())


def _class_of(label: str, model: object, randomized: bool = False) -> type[Defense]:
    """Return a class of defenses for a model, or for its name.

    No stored result is ever used again for an object, because its code is not known.
    """
    model = resolved(model)
    if isinstance(model, str):
        return find("defenses", model)
    if randomized and isinstance(model, Defense):
        raise InputError(
            f"randomized: {type(model).__name__} has to say it itself, by an attribute `randomized = True`"
        )
    try:
        cls = models.class_of(model, label, models.__name__, randomized)
    except TypeError as error:
        raise InputError(f"defense {label!r}: {message_of(error)}") from error
    cls.version = uuid.uuid4().int >> 66  # of 62 bits
    return cls


def _number_of_classes(cls: type[Defense], images: LabelledImages, rejects: bool) -> int:
    """Return the number of a model's classes, or that of the labels for a defense that has yet to be built."""
    made = models.handed(cls)
    if made is None:
        return int(images.labels.max()) + 1
    if isinstance(made.given, Defense):
        return made.given.num_classes
    rejects = rejects or models.declares(made.given, "rejects")
    channels, height, width = images.images.shape[1:]
    try:
        found = models.outputs_for(made, (channels, height, width)) - int(rejects)
    except (TypeError, ValueError) as error:
        raise InputError(f"model: {message_of(error)}") from error
    if fault := fault_of_labels(images.labels, found):
        less = ", as rejects=True makes its last output the reject score" if rejects else ""
        raise InputError(f"data: {models.name_of(made.given)} has {found} classes{less}, but {fault}")
    return found
