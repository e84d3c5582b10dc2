"""Trainings of users' defenses: what `fit` may hand back, what it may do to its data, and weights that are shared."""

from __future__ import annotations

from typing import Any

import handed
import numpy as np
import pytest
import torch
from handed import GOOD, Data, Honest
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.planning.refs import DatasetRef, DefenseRef
from manifold_bench.bench.records.log import Log
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.job import run_job
from manifold_bench.bench.running.training import fit_job, train, training_of
from manifold_bench.defenses import weights
from manifold_bench.defenses.base import Defense, DefenseSpec, LabelledImages, Progress
from manifold_bench.defenses.training import Training, accuracy, train_module

pytestmark = pytest.mark.usefixtures("own_cache")


def planned(monkeypatch: pytest.MonkeyPatch, it: type) -> DefenseRef:
    """The reference of a defense that a matrix names `handed:It`."""
    monkeypatch.setattr(handed, "It", it, raising=False)
    plan = make_plan(parse_matrix(GOOD | {"defenses": ["handed:It"]}, "test.toml"), Options())
    return plan.running[0][1]


def trained(monkeypatch: pytest.MonkeyPatch, it: type) -> Defense:
    """A defense after its training, read back from its file."""
    ref = planned(monkeypatch, it)
    train(training_of(ref, "", DatasetRef("handed:Data", None), "cpu"))
    return planned(monkeypatch, it).load()


class Learning(Honest):
    """A linear classifier, trained by the project's loop."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def learn(self, train: LabelledImages, seed: int, progress: Progress) -> None:
        def step(x: Tensor, y: Tensor, done: float) -> Tensor:
            return F.cross_entropy(self.network(x), y)

        train_module(self.network, step, train, Training("network", seed, 15, 2, 0.3), progress)

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> Any:
        self.learn(train, seed, progress)
        return {"accuracy": accuracy(self, validation)}


def returning(value: object) -> type:
    def fit(self, train, validation, budget, seed, progress):
        self.learn(train, seed, progress)
        return value

    return type("It", (Learning,), {"fit": fit})


@pytest.mark.parametrize(
    "value", [None, 0.9, "done", [0.9], ("accuracy", 0.9), {"accuracy": "high"}, {1: 0.9}, {"all": torch.zeros(3)}]
)
def test_a_fit_that_returns_no_figures_fails_by_name(monkeypatch, tmp_path, value):
    ref = planned(monkeypatch, returning(value))
    crash = fit_job(training_of(ref, "", DatasetRef("handed:Data", None), "cpu"), Log(tmp_path / "log.jsonl"))
    assert crash and "It.fit" in crash[0] and "dict" in crash[0] and "\n" not in crash[0]


@pytest.mark.parametrize("value", [{}, {"n": 3}, {"a": np.float32(0.5), "b": torch.tensor(0.5), "c": True}])
def test_figures_of_any_number_type_are_kept(monkeypatch, value):
    it = returning(value)
    trained(monkeypatch, it)
    ref = planned(monkeypatch, it)
    assert weights.read_card(ref.weights).figures == {name: float(number) for name, number in value.items()}


class Twice(Learning):
    """Its classifier is its network under another name."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.classifier = self.network

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x)


class Transposed(Learning):
    """One weight in two layers, trained as a whole."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.other = nn.Linear(4, 3)
        self.other.weight = self.network[1].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.other(x.flatten(1))

    def learn(self, train: LabelledImages, seed: int, progress: Progress) -> None:
        def step(x: Tensor, y: Tensor, done: float) -> Tensor:
            return F.cross_entropy(self(x), y)

        precise = Training("network", seed, 15, 2, 0.3, stored_as=torch.float32)
        train_module(self, step, train, precise, progress)


class View(Learning):
    """A buffer that is a part of another."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.register_buffer("whole", torch.arange(4.0) / 3)
        self.register_buffer("first", self.whole[:2])


@pytest.mark.parametrize("it", [Learning, Twice, Transposed, View])
def test_weights_that_are_shared_are_trained_stored_and_shared_again(monkeypatch, it):
    defense = trained(monkeypatch, it)
    assert accuracy(defense, Data().test) > 0.8
    ref = planned(monkeypatch, it)
    assert weights.weights_hash(defense) == ref.weights_sha256
    if it is Twice:
        assert defense.classifier is defense.network
    if it is Transposed:
        assert defense.other.weight is defense.network[1].weight


def test_a_training_that_changes_its_images_in_place_changes_nobody_elses(monkeypatch):
    class It(Learning):
        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.sub_(0.5))

        def fit(self, train, validation, budget, seed, progress):
            train.images.sub_(0.5)
            validation.labels.zero_()
            self.learn(train, seed, progress)
            return {"accuracy": accuracy(self, validation)}

    data = DatasetRef("handed:Data", None).load()
    splits = {name: handed.images(seed=seed) for name, seed in (("test", 0), ("train", 1), ("validation", 2))}
    before = {name: (split.images.clone(), split.labels.clone()) for name, split in splits.items()}
    monkeypatch.setattr(Data, "given", splits)
    defense = trained(monkeypatch, It)
    accuracy(defense, data.test)
    for name, (images, labels) in before.items():
        assert torch.equal(getattr(data, name).images, images) and torch.equal(getattr(data, name).labels, labels)


def test_a_training_split_that_is_none_fails_the_training_by_the_data_sets_name(monkeypatch, tmp_path):
    ref = planned(monkeypatch, Learning)
    bad = LabelledImages(255 * handed.images().images, handed.images().labels)
    monkeypatch.setattr(Data, "given", {"train": bad})
    crash = fit_job(training_of(ref, "", DatasetRef("handed:Data", None), "cpu"), Log(tmp_path / "log.jsonl"))
    assert crash and "'data'" in crash[0] and "train" in crash[0] and "[0, 1]" in crash[0]


class Forgetful(Learning):
    """What it learns is no parameter."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.shift = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift

    def fit(self, train, validation, budget, seed, progress):
        self.shift = torch.tensor([9.0, 0.0, 0.0])
        return super().fit(train, validation, budget, seed, progress)


class Grown(Learning):
    """What it learns has a place only once it is learnt."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + getattr(self, "shift", 0)

    def fit(self, train, validation, budget, seed, progress):
        self.register_buffer("shift", torch.tensor([9.0, 0.0, 0.0]))
        return super().fit(train, validation, budget, seed, progress)


class Exploded(Learning):
    def fit(self, train, validation, budget, seed, progress):
        with torch.no_grad():
            self.network[1].bias += torch.nan
        return {}


@pytest.mark.parametrize("it", [Forgetful, Grown, Exploded])
def test_a_training_whose_weights_are_of_no_use_fails_by_name(monkeypatch, tmp_path, it):
    ref = planned(monkeypatch, it)
    crash = fit_job(training_of(ref, "", DatasetRef("handed:Data", None), "cpu"), Log(tmp_path / "log.jsonl"))
    assert crash and it.__name__ in crash[0] and ("NaN" if it is Exploded else "buffer") in crash[0]
    assert not ref.weights.exists()


@pytest.mark.parametrize("left", [True, False])
def test_a_fit_that_leaves_dropout_in_train_mode_is_remarked_on(monkeypatch, tmp_path, left):
    class It(Learning):
        def __init__(self, spec: DefenseSpec) -> None:
            super().__init__(spec)
            self.network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))

        def fit(self, train, validation, budget, seed, progress):
            figures = super().fit(train, validation, budget, seed, progress)
            self.train(left)
            return figures

    trained(monkeypatch, It)
    plan = make_plan(parse_matrix(GOOD | {"defenses": ["handed:It"]}, "test.toml"), Options())
    run_job(plan.jobs[0], tmp_path)
    store = Store(tmp_path)
    (reason,) = set(store.read(store.path(plan.jobs[0]))[0]["reason"])
    assert ("Dropout" in reason) == left
