"""Trained weights: safetensors files with a JSON card beside each; nothing is ever unpickled.

The zoo inside the package holds small ones for the built-in data; everything else is trained once and cached.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from manifold_bench.defenses.base import Trainable, TrainableSpec
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.files import atomic_write
from manifold_bench.defenses.identity import TRAINABLE, JsonObject, System, parameters, registered, system
from manifold_bench.defenses.training import atomic_save

ZOO = Path(__file__).parent / "zoo"

TrainableType = TypeVar("TrainableType", bound=Trainable)


class WeightsError(Exception):
    """A weights file or its card is missing, damaged, or belongs to something else; the message names the file."""


@dataclass(frozen=True)
class Card:
    """What a weights file is: enough to train it again, and what it reached.

    name, source_sha256: of the trained system, as in its identity. data: name of the data set in the zoo. revision: of
    the data it was trained on.
    figures: measured on validation data at the end of the training. notes: anything measured afterwards.
    parts: `weights_sha256` of each part that it was trained with, which have files of their own.
    """

    name: str
    version: int
    spec: JsonObject
    data: str
    revision: str
    seed: int
    budget: float
    command: str
    code: str
    torch: str
    figures: dict[str, float]
    weights_sha256: str
    source_sha256: str | None = None
    notes: JsonObject = dataclasses.field(default_factory=dict)
    parts: dict[str, str] = dataclasses.field(default_factory=dict)


def spec_json(spec: TrainableSpec) -> JsonObject:
    """A spec as plain JSON data: tuples become lists, so that it equals what a card holds."""
    return json.loads(json.dumps(dataclasses.asdict(spec)))


def training_part(spec: TrainableSpec) -> JsonObject:
    """The parameters that a training depends on: all but the fields of the deployment."""
    return {name: value for name, value in parameters(spec).items() if name not in deployment_fields(type(spec))}


def deployment_fields(cls: type[TrainableSpec]) -> list[str]:
    """Fields of a spec with the metadata {"deployment": True}: how a trained defense answers, not what it learns."""
    return [field.name for field in dataclasses.fields(cls) if field.metadata.get("deployment")]


def trained_as(card: Card, own: System, spec: TrainableSpec, data: str, parts: Mapping[str, str]) -> bool:
    """Whether the card's weights are of that system and spec, trained on that data (its name in the zoo) and parts.

    A field that is younger than the card counts as its default; those of the deployment don't count. parts: the
    `weights_hash` of each.
    """
    written = (card.name, card.source_sha256, card.version, card.data, card.parts)
    if written != (own.name, own.source_sha256, own.cls.version, data, parts):
        return False
    try:
        trained = _spec(own.cls, card.spec)
    except ValueError:
        return False
    return training_part(trained) == training_part(spec)


def _spec(cls: type[Trainable], values: JsonObject) -> TrainableSpec:
    return TypeAdapter(cls.Spec).validate_json(json.dumps(values), strict=True)


def weights_hash(module: Trainable) -> str:
    """sha256 over the names, types, shapes and bytes of every parameter and buffer, those of its parts too."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{plain.dtype}|{tuple(plain.shape)}|".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()


def own_state(module: Trainable) -> dict[str, Tensor]:
    """Its parameters and buffers without those of its parts."""
    foreign = tuple(f"{part}." for part in module.parts)
    return {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(foreign)}


def save(module: Trainable, card: Card, path: Path) -> None:
    """Writes path (…safetensors) and its card; the card comes last, so weights with a card are complete."""
    card_path(path).unlink(missing_ok=True)
    atomic_save(own_state(module), path)
    atomic_write(card_path(path), json.dumps(dataclasses.asdict(card), indent=2, sort_keys=True) + "\n")


def card_path(path: Path) -> Path:
    return path.with_suffix(".json")


def with_cards(files: Iterable[Path]) -> list[Path]:
    """Weights files, each followed by its card."""
    return [path for file in files for path in (file, card_path(file))]


def read_card(path: Path) -> Card:
    """The card beside a weights file; raises WeightsError."""
    try:
        return TypeAdapter(Card).validate_json(card_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{card_path(path)}: not a readable card ({one_line(error)}); restore it, or delete both"
        ) from error


def load_into(module: Trainable, path: Path, expected: str) -> None:
    """Fills the module from the file, checks it against the expected `weights_hash`, freezes it in eval mode.

    Its parts are filled already. Raises WeightsError where the file is missing, damaged or doesn't fit.
    """
    advice = "restore it (the zoo comes with the installation), or delete it and its card to train anew"
    try:
        state, own = load_file(path), own_state(module)
        parts = {name: tensor for name, tensor in module.state_dict().items() if name not in own}
        module.load_state_dict({**parts, **state})
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"weights {path} are damaged or belong to another network ({one_line(error)}); {advice}"
        ) from error
    found = weights_hash(module)
    if found != expected:
        raise WeightsError(f"weights {path} are damaged: sha256 {found[:12]}…, expected {expected[:12]}…; {advice}")
    freeze(module)


def freeze(module: TrainableType) -> TrainableType:
    """Eval mode, and no gradients for the weights: attacks ask for those of the input alone.

    Channels last in memory: the same sums in another order, and up to twice as fast (docs/speed.md).
    """
    module.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def find_weights(module: Trainable, own: System, data: str, cached: Path | None = None) -> tuple[Path, Card] | None:
    """The file in the zoo, or else the `cached` one, that has this module's weights, and its card; or None.

    Its parts are filled already. own: the module's class in identities. data: name of the data in the zoo. Raises
    WeightsError for a damaged card.
    """
    parts = {name: weights_hash(part) for name, part in module.named_parts.items()}
    for path in (*zoo_files(data, own.name), *([cached] if cached else [])):
        if card_path(path).exists():
            card = read_card(path)
            if trained_as(card, own, module.spec, data, parts):
                return path, card
    return None


def zoo_file(data: str, name: str) -> Path:
    """Where the zoo keeps (or would keep) the weights of a defense by its registered name."""
    return ZOO / f"{data}--{name}.safetensors"


def zoo_files(data: str, name: str) -> list[Path]:
    """All weights of the zoo for that data; those under the defense's registered name first."""
    cards = sorted(ZOO.glob(f"{glob.escape(data)}--*.json"))
    return sorted((card.with_suffix(".safetensors") for card in cards), key=lambda path: path != zoo_file(data, name))


def from_zoo(name: str, data: str, **deployment: object) -> Any:
    """A trained defense, or a part of some, out of the zoo: from_zoo("undefended", "mnist"), as the file is named.

    deployment: fields of its spec that change how it answers and not what it has learnt, in place of the card's.
    Raises WeightsError where the file is missing or damaged, ValueError for fields that are no such.
    """
    path = zoo_file(data, name)
    if not path.exists():
        known = ", ".join(sorted(path.stem for path in ZOO.glob("*.safetensors")))
        raise WeightsError(f"the zoo has no {name!r} for {data!r}; it has {known}")
    card = read_card(path)
    points = registered("parts") | registered("defenses")
    if card.name not in points:
        raise WeightsError(f"{card_path(path)}: no installed package registers {card.name!r}; restore the card")
    try:
        cls: type[Trainable] = points[card.name].load()
        _spec(cls, card.spec)
    except (ImportError, AttributeError, ValueError) as error:
        raise WeightsError(
            f"{card_path(path)}: {card.name!r} cannot be built from it ({one_line(error)}); restore it"
        ) from error
    allowed = deployment_fields(cls.Spec)
    if foreign := sorted(deployment.keys() - set(allowed)):
        raise ValueError(f"{name!r} has no deployment field {foreign[0]!r}; it has {', '.join(allowed) or 'none'}")
    found = cls(_spec(cls, {**card.spec, **deployment}))
    for part in found.named_parts.values():
        fill_from_zoo(part, data)
    load_into(found, path, card.weights_sha256)
    return found


def fill_from_zoo(module: Trainable, data: str) -> None:
    """Loads the zoo's weights of a part, and of its own parts; raises WeightsError where it has none."""
    for part in module.named_parts.values():
        fill_from_zoo(part, data)
    found = find_weights(module, system(type(module), *TRAINABLE), data)
    if found is None:
        raise WeightsError(f"the zoo has no {type(module).__name__} of that spec for {data!r}")
    path, card = found
    load_into(module, path, card.weights_sha256)
