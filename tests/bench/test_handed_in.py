"""What users hand in is checked when a matrix is planned: one line that names it, and no false figure."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import handed
import pytest
import torch
from commands import bench_run
from handed import GOOD, Data, Honest, Idle, images
from torch import nn

from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.defenses.base import DefenseSpec, LabelledImages


def planned(**changes: Any) -> list:
    plan = make_plan(parse_matrix(GOOD | changes, "test.toml"), Options())
    return [*plan.jobs, *plan.measurements]


def refusal(monkeypatch: pytest.MonkeyPatch, it: type, **changes: Any) -> str:
    """What planning says of a class that a matrix names `handed:It`: one line."""
    monkeypatch.setattr(handed, "It", it, raising=False)
    with pytest.raises(InputError) as caught:
        planned(**changes)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


def test_what_keeps_the_rules_is_planned():
    assert len(planned()) == 2


def changed(**parts: Any) -> LabelledImages:
    return dataclasses.replace(images(), **parts)


X, Y = images().images, images().labels
SPLITS: dict[str, tuple[object, str]] = {
    "pixels of 0…255": (changed(images=(255 * X).round()), "[0, 1]"),
    "standardised pixels": (changed(images=(X - X.mean()) / X.std()), "[0, 1]"),
    "a pixel a little above 1": (changed(images=X.clamp(max=0.9) / 0.9 * 1.001), "[0, 1]"),
    "NaN": (changed(images=torch.where(X.max() == X, torch.nan, X)), "finite"),
    "∞": (changed(images=torch.where(X.max() == X, torch.inf, X)), "finite"),
    "float64": (changed(images=X.double()), "float32"),
    "float16": (changed(images=X.half()), "float32"),
    "bytes": (changed(images=(255 * X).byte()), "float32"),
    "an array": (changed(images=X.numpy()), "tensor"),
    "another shape": (changed(images=X.repeat(1, 3, 1, 1)), "[N, 1, 2, 2]"),
    "no channels": (changed(images=X[:, 0]), "[N, 1, 2, 2]"),
    "channels last": (changed(images=X.permute(0, 2, 3, 1)), "[N, 1, 2, 2]"),
    "labels from 1": (changed(labels=Y + 1), "0…2"),
    "a label of −1": (changed(labels=Y - 1), "0…2"),
    "float labels": (changed(labels=Y.float()), "int64"),
    "labels in 32 bits": (changed(labels=Y.int()), "int64"),
    "one-hot labels": (changed(labels=nn.functional.one_hot(Y, 3)), "[24]"),
    "too few labels": (changed(labels=Y[:-1]), "[24]"),
    "an empty split": (changed(images=X[:0], labels=Y[:0]), "at least one"),
    "images with a gradient": (changed(images=X.clone().requires_grad_(True)), "detach"),
    "a tuple": ((X, Y), "LabelledImages"),
    "nothing": (None, "LabelledImages"),
}


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("case", SPLITS)
def test_a_split_that_is_none_is_refused_by_the_data_sets_name(monkeypatch, case, split):
    given, expected = SPLITS[case]

    @dataclass(frozen=True)
    class It(Data):
        name = "theirs"

    It.given = {split: given}
    text = refusal(monkeypatch, It, datasets=[{"name": "handed:It"}])
    assert "'theirs'" in text and split in text and expected in text


def test_a_split_that_changes_is_refused(monkeypatch):
    @dataclass(frozen=True)
    class It(Data):
        @property
        def test(self) -> LabelledImages:
            x = torch.rand(24, 1, 2, 2)
            return LabelledImages(x, handed.logits(x).argmax(1))

    assert "same images" in refusal(monkeypatch, It, datasets=[{"name": "handed:It"}])


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("name", None),
        ("name", ""),
        ("shape", (2, 2)),
        ("shape", [1, 2, 2]),
        ("shape", (1, 2.0, 2)),
        ("shape", "1"),
        ("shape", (0, 2, 2)),
        ("num_classes", "3"),
        ("num_classes", 0),
        ("num_classes", 2.5),
        ("revision", 1),
        ("zoo", None),
        ("files", "folder"),
        ("files", ("a", "b")),
        ("files", None),
    ],
)
def test_what_a_data_set_declares_is_refused_by_name(monkeypatch, attribute, value):
    it = dataclass(frozen=True)(type("It", (Data,), {attribute: value}))
    text = refusal(monkeypatch, it, datasets=[{"name": "handed:It"}])
    assert "data set" in text and attribute in text and "expected" in text


def test_the_data_sets_of_this_project_pass():
    assert len(planned(datasets=[{"name": "digits", "n": 10}], defenses=["undefended"])) == 2
    assert Digits().test.images.dtype is torch.float32


def test_a_data_set_that_lacks_its_files_says_so_in_its_own_words():
    with pytest.raises(InputError) as caught:
        planned(datasets=[{"name": "cifar10"}])
    assert str(caught.value).startswith("data set 'cifar10' needs its files")


class Raises:
    """A property that raises."""

    def __get__(self, owner: object, of: type | None = None) -> object:
        if owner is None:
            return self
        raise RuntimeError("not today\nnor tomorrow")


@dataclass(frozen=True, kw_only=True)
class SetSpec(DefenseSpec):
    values: Any = frozenset({1, 2})


@dataclass(frozen=True, kw_only=True)
class TouchySpec(DefenseSpec):
    def __post_init__(self) -> None:
        raise KeyError("touchy")


class Undecorated(DefenseSpec):
    alpha: float = 1.0


DECLARED: dict[str, tuple[dict[str, Any], str]] = {
    "version is a text": ({"version": "2"}, "version"),
    "version is a float": ({"version": 1.5}, "version"),
    "version is None": ({"version": None}, "version"),
    "version raises": ({"version": Raises()}, "version"),
    "family is None": ({"family": None}, "family"),
    "rejects is a number": ({"rejects": 1}, "rejects"),
    "rejects is a method": ({"rejects": lambda self: True}, "rejects"),
    "rejects raises": ({"rejects": Raises()}, "rejects"),
    "randomized is a text": ({"randomized": "yes"}, "randomized"),
    "detectors is a text": ({"detectors": "encoding"}, "detectors"),
    "detectors without detection": ({"detectors": ("one",)}, "detection"),
    "unknown gradient modes": ({"gradient_modes": ("magic",)}, "gradient_modes"),
    "gradient modes as a text": ({"gradient_modes": "identity"}, "gradient_modes"),
    "gradient modes without attack_forward": ({"gradient_modes": ("identity",)}, "attack_forward"),
    "no gradient modes": ({"gradient_modes": ()}, "attack_forward"),
    "steps are negative": ({"inference_steps": -1}, "inference_steps"),
    "steps are None": ({"inference_steps": None}, "inference_steps"),
    "attacked steps are a float": ({"attacked_steps": 2.5}, "attacked_steps"),
    "parts is a text": ({"parts": "classifier"}, "parts"),
    "parts that are not there": ({"parts": ("nowhere",)}, "parts"),
    "parts that are no Trainables": ({"parts": ("classifier",)}, "parts"),
    "Spec is no dataclass": ({"Spec": Undecorated}, "Spec"),
    "Spec is none of a defense": ({"Spec": dict}, "Spec"),
    "Spec is an instance": ({"Spec": 3}, "Spec"),
    "Spec holds a set": ({"Spec": SetSpec}, "spec"),
    "Spec raises": ({"Spec": TouchySpec}, "touchy"),
}


@pytest.mark.parametrize("case", DECLARED)
def test_what_a_defense_declares_is_refused_by_class_and_part(monkeypatch, case):
    parts, names = DECLARED[case]
    text = refusal(monkeypatch, type("It", (Honest,), parts), defenses=["handed:It"])
    assert names in text
    assert ("It" in text and "expected" in text) or "TouchySpec" in text


def test_an_attribute_that_the_constructor_spoils_is_refused(monkeypatch):
    class It(Honest):
        def __init__(self, spec: DefenseSpec) -> None:
            super().__init__(spec)
            self.num_classes = 10

    assert "num_classes" in refusal(monkeypatch, It, defenses=["handed:It"])


ATTACKS: dict[str, tuple[dict[str, Any], str]] = {
    "passes is None": ({"passes": lambda self: None}, "passes"),
    "passes is a number": ({"passes": lambda self: 3}, "passes"),
    "passes are negative": ({"passes": lambda self: (-1, 0)}, "passes"),
    "passes are infinite": ({"passes": lambda self: (math.inf, 0)}, "passes"),
    "passes are texts": ({"passes": lambda self: ("many", "more")}, "passes"),
    "passes raises": ({"passes": lambda self: 1 / 0}, "passes"),
    "unsuited raises": ({"unsuited": lambda self, defense: 1 / 0}, "unsuited"),
    "unsuited is True": ({"unsuited": lambda self, defense: True}, "unsuited"),
    "unsuited is empty": ({"unsuited": lambda self, defense: ""}, "unsuited"),
    "unknown norms": ({"norms": ("l3",)}, "norms"),
    "norms as a text": ({"norms": "linf"}, "norms"),
    "unknown knowledge": ({"knowledge": "everything"}, "knowledge"),
    "knowledge raises": ({"knowledge": Raises()}, "knowledge"),
    "unknown aims": ({"aims": "all"}, "aims"),
    "minimal is a text": ({"minimal": "no"}, "minimal"),
    "revision is a number": ({"revision": 3}, "revision"),
}


@pytest.mark.parametrize("case", ATTACKS)
def test_what_an_attack_declares_is_refused_by_class_and_part(monkeypatch, case):
    parts, names = ATTACKS[case]
    it = dataclass(frozen=True, kw_only=True)(type("It", (Idle,), parts))
    text = refusal(monkeypatch, it, attacks=[{"name": "handed:It", "eps": [0.1]}])
    assert "It" in text and names in text and "expected" in text


def test_an_attack_whose_constructor_raises_is_refused_by_its_place(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class It(Idle):
        def __post_init__(self) -> None:
            raise ZeroDivisionError("by design")

    assert "attacks[0]" in refusal(monkeypatch, It, attacks=[{"name": "handed:It", "eps": [0.1]}])


def test_a_command_ends_with_2_and_one_line(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "from dataclasses import dataclass\n"
        "from handed import Data, images\n"
        "from manifold_bench.defenses.base import LabelledImages\n"
        "@dataclass(frozen=True)\n"
        "class Bytes(Data):\n"
        "    name = 'bytes'\n"
        "    @property\n"
        "    def test(self):\n"
        "        return LabelledImages(255 * images().images, images().labels)\n"
    )
    (tmp_path / "m.toml").write_text(
        'datasets = ["theirs:Bytes"]\ndefenses = ["handed:Honest"]\nattacks = [{ name = "handed:Idle", eps = [0.1] }]\n'
    )
    ended = bench_run("m.toml", tmp_path / "out", cwd=tmp_path, path=str(tmp_path))
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1 and "'bytes'" in ended.stderr
