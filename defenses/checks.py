"""Checks of what the code of a defense declares and returns.

Every error is a `ContractError` of one line: the class, which part of it, what was found, and what is expected.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, get_args

import torch
from torch import Tensor, nn

from manifold_bench.attacks.contract import GradientMode, Verdict
from manifold_bench.defenses.base import Certificate, Defense, DefenseSpec, Trainable
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.identity import parameters
from manifold_bench.defenses.weights import freeze

T = TypeVar("T")


class ContractError(ValueError):
    """Code of a defense, attack or measurement declares or returns something that its base class does not allow."""


@dataclass(frozen=True)
class Expected:
    """An expected value: in words, and as a function that tests a value."""

    words: str
    fits: Callable[[object], bool]


def one_of(*values: str) -> Expected:
    """Expect one of these texts."""
    return Expected(f"one of {', '.join(map(repr, values))}", lambda value: isinstance(value, str) and value in values)


def names(of: str, *allowed: str) -> Expected:
    """Expect a tuple of texts; if `allowed` is given, of these alone. of: what the texts are, in words."""
    return Expected(
        f"a tuple of {of}{': ' if allowed else ''}{', '.join(map(repr, allowed))}",
        lambda value: (
            isinstance(value, tuple | list)
            and all(isinstance(name, str) and (not allowed or name in allowed) for name in value)
        ),
    )


WHOLE = Expected(
    "a whole number ≥ 0", lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0
)
FLAG = Expected("True or False", lambda value: isinstance(value, bool))
TEXT = Expected(
    "a text of printable characters", lambda value: isinstance(value, str) and bool(value) and value.isprintable()
)
REASON = Expected(
    "a text that says why, or None", lambda value: value is None or (isinstance(value, str) and bool(value))
)


def checked(owner: object, part: str, expected: Expected, compute: Callable[[], T]) -> T:
    """Return what a user's object declares or returns; raises ContractError if it is unexpected.

    owner: the object, or its class. part: the attribute or method, for the message. expected: what the value has to be.
    compute: function that returns the value.
    """
    name = (owner if isinstance(owner, type) else type(owner)).__name__
    try:
        value = compute()
    except Exception as error:  # a user's code may raise anything
        raise ContractError(f"{name}.{part} raises {one_line(error)}; expected {expected.words}") from error
    if not expected.fits(value):
        raise ContractError(f"{name}.{part} is {value_text(value)}; expected {expected.words}")
    return value


def check(owner: object, attribute: str, expected: Expected) -> None:
    """Check an attribute that a user's object, or its class, declares; raises ContractError as `checked` does."""
    checked(owner, attribute, expected, lambda: getattr(owner, attribute))


def value_text(value: object) -> str:
    """Return a short text of a value, on one line."""
    return " ".join(reprlib.repr(value).split())


def check_spec_class(cls: type[Defense]) -> None:
    """Check the class of a defense's parameters; raises ContractError."""

    def is_spec(spec: object) -> bool:
        if not (isinstance(spec, type) and issubclass(spec, DefenseSpec)):
            return False
        return "__dataclass_fields__" in vars(spec) or not inspect.get_annotations(spec)

    words = "a subclass of DefenseSpec, decorated with @dataclass(frozen=True, kw_only=True)"
    check(cls, "Spec", Expected(words, is_spec))


def check_defense(defense: Defense) -> None:
    """Check everything that a defense declares, trained or not; raises ContractError."""
    check(defense, "family", TEXT)
    for part in ("randomized", "rejects"):
        check(defense, part, FLAG)
    for part in ("inference_steps", "attacked_steps"):
        check(defense, part, WHOLE)
    classes = defense.spec.num_classes
    check(defense, "num_classes", Expected(f"{classes}, that of its spec", lambda value: value == classes))
    check(defense, "classifier", Expected("a module or None", lambda value: value is None or callable(value)))
    detectors = checked(defense, "detectors", names("names"), lambda: defense.detectors)
    known = names("gradient modes", *get_args(GradientMode))
    modes = checked(defense, "gradient_modes", known, lambda: defense.gradient_modes)
    if detectors and type(defense).detection is Defense.detection:
        raise ContractError(f"{type(defense).__name__} names detectors; expected a method detection(x, labels) too")
    if set(modes) != {"default"} and type(defense).attack_forward is Defense.attack_forward:
        found = f"gradient modes {', '.join(modes) or 'of no name'}"
        raise ContractError(f"{type(defense).__name__} has {found}; expected a method attack_forward too")
    kind = Expected("a Certificate or None", lambda value: value is None or isinstance(value, Certificate))
    certificate = checked(defense, "certificate", kind, lambda: defense.certificate)
    if certificate and type(defense).certified is Defense.certified:
        raise ContractError(f"{type(defense).__name__} has a certificate; expected a method certified too")
    check_trainable(defense)


def check_trainable(module: Trainable) -> None:
    """Check version, spec and parts of a trainable module, and those of its parts; raises ContractError."""
    check(module, "version", WHOLE)
    words = "fields that are numbers, texts, true or false, None, or lists, tables and dataclasses of them"
    checked(module, "spec", Expected(words, lambda _: True), lambda: json.dumps(parameters(module.spec)))

    def are_parts(value: object) -> bool:
        return parts.fits(value) and all(isinstance(getattr(module, name, None), Trainable) for name in module.parts)

    parts = names("names of attributes that are Trainables")
    check(module, "parts", dataclasses.replace(parts, fits=are_parts))
    for part in module.named_parts.values():
        check_trainable(part)


def check_outputs(defense: Defense, x: Tensor, outputs: object) -> None:
    """Check the outputs of a defense's forward for images x [N,C,H,W]; raises ContractError.

    Outputs with a NaN are refused, because their argmax would pass for an answer.
    """
    rejects = defense.rejects
    expected = (len(x), defense.num_classes + int(rejects))
    words = f"a float tensor {list(expected)}: one output per class{' and the reject score' if rejects else ''}"
    name = f"{type(defense).__name__}.forward"
    if not isinstance(outputs, Tensor):
        raise ContractError(f"{name} returned {type(outputs).__name__}; expected {words}")
    if tuple(outputs.shape) != expected or not outputs.is_floating_point():
        advice = ""
        if outputs.dim() == 2 and outputs.shape[1] == defense.num_classes + int(not rejects):
            declared = "False" if rejects else "True, if the last one says that it rejects"
            advice = f"; set rejects = {declared}"
        raise ContractError(f"{name} returned {outputs.dtype} {list(outputs.shape)}; expected {words}{advice}")
    if outputs.isnan().any() and not x.isnan().any():
        raise ContractError(f"{name} returned NaN for an image; expected numbers")


def check_verdict(defense: Defense, answer: object, n: int) -> None:
    """Check the verdict of a defense for n images; raises ContractError."""
    name = f"{type(defense).__name__}.verdict"
    if not isinstance(answer, Verdict):
        raise ContractError(f"{name} returned {type(answer).__name__}; expected a Verdict")
    kinds: dict[str, tuple[str, Callable[[Tensor], bool]]] = {
        "labels": ("whole numbers (int64)", lambda t: not t.is_floating_point() and t.dtype is not torch.bool),
        "rejected": ("True or False (bool)", lambda t: t.dtype is torch.bool),
        "scores": ("floats, or None instead of all", Tensor.is_floating_point),
    }
    for part, (words, fits) in kinds.items():
        value = getattr(answer, part)  # the three fields of a Verdict
        if part == "scores" and value is None:
            continue
        if not isinstance(value, Tensor):
            raise ContractError(f"{name}: {part} is {type(value).__name__}; expected a tensor [{n}] of {words}")
        if value.shape != (n,) or value.is_complex() or not fits(value):
            found = f"{value.dtype} {list(value.shape)}"
            raise ContractError(f"{name}: {part} is {found}; expected a tensor [{n}] of {words}")
    outside = (answer.labels < 0) | (answer.labels >= defense.num_classes)
    if outside.any():
        wrong = int(answer.labels[outside][0])
        raise ContractError(f"{name}: labels has {wrong}; expected classes 0…{defense.num_classes - 1}")


def perceived(defense: Defense, x: Tensor) -> Tensor:
    """Return `defense.perceived` of images x [N,C,H,W], same shape; raises ContractError if it returns no images."""
    name = f"{type(defense).__name__}.perceived"
    seen = defense.perceived(x.clone())
    usable = isinstance(seen, Tensor) and seen.shape == x.shape and seen.is_floating_point()
    if not (usable and bool(seen.isfinite().all())):
        found = f"{seen.dtype} {list(seen.shape)}" if isinstance(seen, Tensor) else type(seen).__name__
        raise ContractError(f"{name} returned {found}; expected finite images {list(x.shape)}")
    return seen.detach().float()


def check_figures(owner: object, part: str, returned: object) -> dict[str, float]:
    """Return numbers by name that a method returned, such as figures of a fit; raises ContractError for anything else.

    owner, part: object and name of the method, for the message.
    """
    try:
        if isinstance(returned, dict) and all(isinstance(name, str) for name in returned):
            return {name: float(value) for name, value in returned.items()}
    except (TypeError, ValueError, RuntimeError):
        pass  # a value that is no number
    words = "a dict of numbers by name, {} where there are none"
    raise ContractError(f"{type(owner).__name__}.{part} returned {value_text(returned)}; expected {words}")


def check_readable(trained: Defense, fresh: Defense, images: Tensor) -> None:
    """Check that a trained defense answers images [N,C,H,W] as before once its weights are read into a fresh one.

    Both are on the CPU; `fresh` gets the weights. Raises ContractError.
    """
    words = "all that fit learns in parameters and buffers that the constructor makes (register_buffer)"
    name = type(trained).__name__
    if any(weight.isnan().any() for weight in trained.parameters()):
        raise ContractError(f"{name}.fit left weights that are NaN; expected numbers")
    try:
        fresh.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise ContractError(f"{name}: its weights cannot be read back ({one_line(error)}); expected {words}") from error

    def answers(defense: Defense) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return freeze(defense)(images)

    if not torch.allclose(answers(trained), answers(fresh), rtol=0.01, atol=0.01, equal_nan=True):
        raise ContractError(f"{name} answers otherwise once its weights are read back; expected {words}")


BY_MODE = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
"""Layers whose outputs differ between train mode and eval mode."""


def in_train_mode(module: Trainable) -> list[str]:
    """Return the kinds of layers in train mode that compute something else there; layers of parts are left out."""
    of_parts = {layer for part in module.named_parts.values() for layer in part.modules()}
    own = (layer for layer in module.modules() if layer not in of_parts)
    return sorted({type(layer).__name__ for layer in own if isinstance(layer, BY_MODE) and layer.training})
