"""Trained weights: safetensors files, each with a JSON card in the same folder; nothing is ever unpickled.

The zoo in this package has small files for the data sets of this project; other weights are trained once and cached.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from manifold_bench.defenses.base import Trainable, TrainableSpec
from manifold_bench.defenses.content import content
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.files import atomic_write, checked_file
from manifold_bench.defenses.identity import TRAINABLE, JsonObject, System, parameters, registered, system
from manifold_bench.defenses.training import atomic_save
from manifold_bench.defenses.validation import adapter

ZOO = Path(__file__).parent / "zoo"

TrainableType = TypeVar("TrainableType", bound=Trainable)


class WeightsError(Exception):
    """A weights file or its card is missing or damaged, or belongs to another system; the message names the file."""


@dataclass(frozen=True)
class Card:
    """The description of a weights file: everything that is needed to train it again, and its figures.

    name, version, source_sha256: name, version and source hash of the trained system, as in its identity. spec: its
    parameters. data: name of the data set in the zoo. revision: revision of these data. seed, budget: seed of the
    training, and share of the full training. command: command that trained it. code, torch: revisions of this project
    and of torch.
    figures: figures on validation data at the end of the training. notes: anything that was measured later.
    weights_sha256: `weights_hash` of the weights. parts: `weights_sha256` of each part that it was trained with; parts
    have their own files.
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
    """Return a spec as JSON data, as cards hold it: tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(spec)))


def training_part(spec: TrainableSpec) -> JsonObject:
    """Return the parameters that a training depends on: all but the deployment fields."""
    return {name: value for name, value in parameters(spec).items() if name not in deployment_fields(type(spec))}


def deployment_fields(cls: type[TrainableSpec]) -> list[str]:
    """Return the names of a spec's deployment fields, which change how a trained defense answers, not its training.

    They have the metadata {"deployment": True}.
    """
    return [field.name for field in dataclasses.fields(cls) if field.metadata.get("deployment")]


def trained_as(card: Card, own: System, spec: TrainableSpec, data: str, parts: Mapping[str, str]) -> bool:
    """Return whether a card's weights are those of a system with this spec, trained on these data and parts.

    data: name of the data set in the zoo. parts: `weights_hash` of each part. A field that is newer than the card
    counts as its default; deployment fields are ignored.
    """
    written = (card.name, card.source_sha256, card.version, card.data, card.parts)
    if written != (own.name, own.source_sha256, own.cls.version, data, parts):
        return False
    try:
        trained = spec_of(own.cls, card.spec)
    except ValueError:
        return False
    return training_part(trained) == training_part(spec)


def spec_of(cls: type[Trainable], values: JsonObject) -> TrainableSpec:
    """Return the spec of a class with these values, as cards hold them; raises ValueError."""
    return adapter(cls.Spec).validate_json(json.dumps(values), strict=True)


def built(cls: type[TrainableType], spec: TrainableSpec) -> TrainableType:
    """Return a module of a class with this spec, whose weights are float32 whatever torch's default type is."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return cls(spec)
    finally:
        torch.set_default_dtype(default)


def weights_hash(module: Trainable) -> str:
    """Return the sha256 of names, types, shapes and bytes of all that is in the `state_dict`, that of parts included.

    Raises ValueError if something in it has no content.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}|".encode())
        try:
            for part in content(value):
                digest.update(part)
        except ValueError as error:
            raise ValueError(f"{name!r} of the state_dict: {error}") from error
    return digest.hexdigest()


def own_state(module: Trainable) -> dict[str, Tensor]:
    """Return a module's parameters and buffers without those of its parts."""
    foreign = tuple(f"{part}." for part in module.parts)
    return {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(foreign)}


def save(module: Trainable, card: Card, path: Path) -> None:
    """Write the weights file `path`, and then its card, so that weights with a card are complete."""
    card_path(path).unlink(missing_ok=True)
    atomic_save(own_state(module), path)
    atomic_write(card_path(path), json.dumps(dataclasses.asdict(card), indent=2, sort_keys=True) + "\n")


def card_path(path: Path) -> Path:
    """Return the path of a weights file's card."""
    return path.with_suffix(".json")


def with_cards(files: Iterable[Path]) -> list[Path]:
    """Return weights files, each followed by its card."""
    return [path for file in files for path in (file, card_path(file))]


def read_card(path: Path) -> Card:
    """Return the card of a weights file; raises WeightsError if it is missing or damaged."""
    try:
        return adapter(Card).validate_json(checked_file(card_path(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{card_path(path)}: not a readable card ({one_line(error)}); restore it, or delete it and its weights"
        ) from error


def load_into(module: Trainable, path: Path, expected: str) -> None:
    """Load a weights file into a module whose parts are loaded already, check the hash, and freeze it in eval mode.

    expected: the expected `weights_hash`. Raises WeightsError if the file is missing, damaged or does not fit.
    """
    advice = "restore it (the zoo comes with the installation), or delete it and its card to train anew"
    try:
        state, own = load_file(checked_file(path)), own_state(module)
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
    """Put a module into eval mode, without gradients for its weights and with channels last in memory; return it.

    Channels last is up to twice as fast, and rounds in another way (docs/speed.md).
    """
    module.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def find_weights(module: Trainable, own: System, data: str, cached: Path | None = None) -> tuple[Path, Card] | None:
    """Return the file in the zoo, or else the `cached` one, that has this module's weights, and its card; or None.

    The parts of the module must have their weights already. own: registered name, version and source hash of the
    module's class. data: name of the data set in the zoo. Raises WeightsError for a damaged card.
    """
    parts = {name: weights_hash(part) for name, part in module.named_parts.items()}
    for path in (*zoo_files(data, own.name), *([cached] if cached else [])):
        if card_path(path).exists():
            card = read_card(path)
            if trained_as(card, own, module.spec, data, parts):
                return path, card
    return None


def zoo_file(data: str, name: str) -> Path:
    """Return the path in the zoo of the weights with that name (as in `undefended`) for that data set."""
    return ZOO / f"{data}--{name}.safetensors"


def zoo_files(data: str, name: str) -> list[Path]:
    """Return all weights files of the zoo for that data set, the one with that name first."""
    cards = sorted(ZOO.glob(f"{glob.escape(data)}--*.json"))
    return sorted((card.with_suffix(".safetensors") for card in cards), key=lambda path: path != zoo_file(data, name))


def cards_of_zoo() -> dict[str, Card]:
    """Return the cards of all weights in the zoo, by the names of their files without endings; raises WeightsError."""
    return {path.stem: read_card(path) for path in sorted(ZOO.glob("*.safetensors"))}


def from_zoo(name: str, data: str, **deployment: object) -> Trainable:
    """Return a trained defense, or part of defenses, of the zoo, as in from_zoo("undefended", "mnist").

    name, data: the two parts of the file's name. deployment: values for deployment fields of its spec, in place of the
    card's. Raises WeightsError if the file is missing or damaged, and ValueError for other fields.
    """
    path = zoo_file(data, name)
    if not path.exists():
        pairs = sorted(path.stem.split("--", 1) for path in ZOO.glob("*.safetensors"))
        if known := [weights for of, weights in pairs if of == data]:
            raise WeightsError(f"the zoo has no {name!r} for {data!r}; it has {', '.join(known)}")
        data_sets = ", ".join(dict.fromkeys(of for of, _ in pairs))
        raise WeightsError(f"the zoo has no weights for the data set {data!r}; it has some for {data_sets}")
    card = read_card(path)
    points = registered("parts") | registered("defenses")
    if card.name not in points:
        raise WeightsError(f"{card_path(path)}: no installed package registers {card.name!r}; restore the card")
    try:
        cls: type[Trainable] = points[card.name].load()
        spec_of(cls, card.spec)
    except (ImportError, AttributeError, ValueError) as error:
        raise WeightsError(
            f"{card_path(path)}: {card.name!r} cannot be built from it ({one_line(error)}); restore it"
        ) from error
    allowed = deployment_fields(cls.Spec)
    if foreign := sorted(deployment.keys() - set(allowed)):
        raise ValueError(f"{name!r} has no deployment field {foreign[0]!r}; it has {', '.join(allowed) or 'none'}")
    found = built(cls, spec_of(cls, {**card.spec, **deployment}))
    for part in found.named_parts.values():
        fill_from_zoo(part, data)
    load_into(found, path, card.weights_sha256)
    return found


def fill_from_zoo(module: Trainable, data: str) -> None:
    """Load the zoo's weights into a part of a defense and into its own parts; raises WeightsError if there are none."""
    for part in module.named_parts.values():
        fill_from_zoo(part, data)
    found = find_weights(module, system(type(module), *TRAINABLE), data)
    if found is None:
        raise WeightsError(f"the zoo has no {type(module).__name__} of that spec for {data!r}")
    path, card = found
    load_into(module, path, card.weights_sha256)
