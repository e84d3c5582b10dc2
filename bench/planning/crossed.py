"""Fills in a crossed matrix: every registered data set, defense and attack, at sizes that suit the images.

The lists that the file of a crossed matrix leaves out hold everything that is registered, so that a new system takes
part without being named anywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from manifold_bench.attacks.threat import UNBOUNDED
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.identity import JsonObject, registered
from manifold_bench.defenses.pretrained import SOURCES
from manifold_bench.defenses.weights import Card, cards_of_zoo, spec_json, spec_of

N = 100
"""Number of images of each data set; all of those that have fewer."""

SIZES: Mapping[str, Mapping[str, Sequence[float | str]]] = {
    "tiny": {"linf": (0.1, 0.2, 0.3), "l2": (0.5, 1.0, 1.5), "l1": (1.0, 2.0, 4.0), "l0": (1, 2, 4)},
    "grey": {"linf": (0.1, 0.2, 0.3), "l2": (1.0, 2.0, 3.0), "l1": (10.0, 20.0, 30.0), "l0": (5, 10, 20)},
    "colour": {"linf": ("2/255", "4/255", "8/255"), "l2": (0.25, 0.5, 1.0), "l1": (6.0, 12.0, 24.0), "l0": (5, 10, 20)},
    "large": {"linf": ("0.5/255", "1/255", "4/255"), "l2": (0.5, 1.0, 3.0), "l1": (30.0, 60.0), "l0": (20, 50, 200)},
}
"""Perturbation sizes by kind of image and norm; `tiny` means fewer than `TINY` rows, `large` at least `LARGE`.

Those of L∞ and L2 are the usual ones of MNIST, CIFAR-10 and, near the point where classifiers fall, ImageNet. On tiny
images (digits of 8×8) half of the inputs of an undefended classifier fall at the first or second size of each norm.
"""

TINY, LARGE = 16, 128

VARIANTS: Mapping[str, Mapping[str, JsonObject]] = {
    "pgd": {
        "pgd": {},
        "pgd-oblivious": {"part": "classifier"},
        "pgd-identity": {"gradient": "identity"},
        "pgd-unrolled": {"gradient": "unrolled"},
        "pgd-implicit": {"gradient": "implicit"},
        "pgd-restarts": {"restarts": 5},
        "pgd-eot": {"eot": 5},
    },
    "carlini-wagner": {"carlini-wagner": {"searches": 5, "steps": 200, "rate": 0.05}},
}
"""Labels and parameters of attacks that run in several ways, or not with their defaults."""

OF_LIBRARIES: Mapping[str, tuple[str, JsonObject]] = {
    "art:HopSkipJump": ("l2", {"max_iter": 5, "max_eval": 500, "init_eval": 50}),
    "art:NewtonFool": ("l2", {"max_iter": 50}),
    "foolbox:BoundaryAttack": ("l2", {"steps": 2000}),
    "foolbox:DDNAttack": ("l2", {"steps": 100}),
}
"""Attacks of other libraries that this project has no version of, each with its norm and parameters."""

PREPROCESSORS = ("art:JpegCompression", "art:SpatialSmoothing", "art:FeatureSqueezing")
"""Defenses of other libraries: the preprocessors that papers on input transformations compare."""

PREFERRED = ("-l-bfgs", "")
"""Endings of the names of weights that are taken first: this solver projects as well in a tenth of the steps."""


def crossed(raw: JsonObject, more: Sequence[str] = ()) -> JsonObject:
    """Return the content of a crossed matrix file with the lists that it leaves out. more: names of further data sets.

    Lists that the file has stay as they are.
    """
    listed = raw.get("datasets", [{"name": name, "n": N} for name in registered("datasets")])
    if not isinstance(listed, list):
        return raw
    given = [str(entry.get("name") if isinstance(entry, dict) else entry) for entry in listed]
    listed = [*listed, *({"name": name, "n": N} for name in more if name not in given)]
    datasets = {name: find("datasets", name) for name in dict.fromkeys([*given, *more])}
    filled = {key: list(fill(datasets)) for key, fill in FILL.items() if key not in raw}
    return raw | filled | {"datasets": listed}


def kind_of(dataset: type[Dataset]) -> str:
    """Return the kind of a data set's images, a key of `SIZES`."""
    channels, rows, _ = dataset.shape
    if not TINY <= rows < LARGE:
        return "tiny" if rows < TINY else "large"
    return "grey" if channels == 1 else "colour"


def _attacks(datasets: Mapping[str, type[Dataset]]) -> Iterator[JsonObject]:
    """Yield an entry for each registered attack, way to run it, norm and kind of images, the cheapest first."""
    kinds: dict[str, list[str]] = {}
    for name, dataset in datasets.items():
        kinds.setdefault(kind_of(dataset), []).append(name)
    found: list[tuple[float, JsonObject]] = []
    for name in registered("attacks"):
        cls = find("attacks", name)
        if cls.open_parameters:
            continue
        for label, parameters in VARIANTS.get(name, {name: {}}).items():
            with contained(f"attack {name!r} cannot be made with its defaults"):
                costs = {norm: sum(cls(norm=norm, **parameters).passes()) for norm in cls(**parameters).norms}
            for norm, cost in costs.items():
                entry = {"name": name, "label": label, "norm": norm, **parameters}
                found += [(cost, sized) for sized in _sized(entry, kinds)]
    ordered = [entry for _, entry in sorted(found, key=lambda pair: pair[0])]
    others = [{"name": name, "label": name, "norm": norm, **own} for name, (norm, own) in OF_LIBRARIES.items()]
    yield from (*ordered, *(sized for entry in others for sized in _sized(entry, kinds)))


def _sized(entry: JsonObject, kinds: Mapping[str, Sequence[str]]) -> Iterator[JsonObject]:
    """Yield an attack's entry once for each kind of images, with the sizes of its norm."""
    if entry["norm"] in UNBOUNDED:
        yield entry
        return
    for kind, names in kinds.items():
        yield {**entry, "eps": list(SIZES[kind][entry["norm"]]), "datasets": list(names)}


def _defenses(datasets: Mapping[str, type[Dataset]]) -> Iterator[JsonObject]:
    """Yield an entry for each registered defense and each set of parameters with which the zoo has its weights."""
    cards = cards_of_zoo()
    photographs = [name for name, cls in datasets.items() if (cls.shape, cls.num_classes) in SOURCES]
    for name in registered("defenses"):
        for own in PREPROCESSORS if find("defenses", name).open_parameters else [name]:
            yield from _entries(own, find("defenses", own), datasets, cards, photographs)


def _entries(
    name: str,
    cls: type[Defense],
    datasets: Mapping[str, type[Dataset]],
    cards: Mapping[str, Card],
    photographs: Sequence[str],
) -> Iterator[JsonObject]:
    """Yield the entries of one defense: that of its defaults, and those of the zoo's weights with other parameters.

    A defense that chooses the classifier behind it takes the one of `photographs` on these data sets.
    """
    fields = {field.name for field in dataclasses.fields(cls.Spec)}
    own = photographs if "classifier" in fields else []
    places: dict[str, tuple[JsonObject, list[str]]] = {}
    for dataset, data in datasets.items():
        label, parameters = (f"{name} (pretrained)", {"classifier": "pretrained"}) if dataset in own else (name, {})
        trained = [stem for stem, card in cards.items() if card.name == name and card.data == data.zoo]
        first = [stem for ending in PREFERRED for stem in trained if stem == f"{data.zoo}--{name}{ending}"]
        if trained:
            stem = (first or sorted(trained))[0]
            parameters = _unusual(cls, cards[stem])
            label = stem.removeprefix(f"{data.zoo}--") if parameters else name
            if places.get(label, (parameters,))[0] != parameters or (parameters and label == name):
                label = f"{label} ({data.zoo})"
        places.setdefault(label, (parameters, []))[1].append(dataset)
    for label, (parameters, names) in places.items():
        yield {"name": name, "label": label, "datasets": names, **parameters}


def _unusual(cls: type[Defense], card: Card) -> JsonObject:
    """Return the parameters of a card's weights that are not the defaults."""
    spec = spec_of(cls, card.spec)
    usual = spec_json(cls.Spec(shape=spec.shape, num_classes=spec.num_classes))
    return {key: value for key, value in spec_json(spec).items() if value != usual[key]}


FILL = {"defenses": _defenses, "attacks": _attacks}
"""The lists of a matrix file that depend on its data sets, and what fills them in."""
