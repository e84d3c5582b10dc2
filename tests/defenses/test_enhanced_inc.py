"""Robust manifold training: only pairs that the overpowered attack really found enter its loss; it learns from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.lagrangian import Pairs
from manifold_bench.bench.datasets.base import select
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.defenses import enhanced_inc
from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.classifier import fit_classifier
from manifold_bench.defenses.enhanced_inc import (
    EnhancedInvertAndClassify,
    EnhancedInvertAndClassifySpec,
    RobustManifoldSettings,
    RobustManifoldTraining,
)
from manifold_bench.defenses.pgd_training import PGDTraining
from manifold_bench.defenses.solvers import MomentumSolver
from manifold_bench.defenses.training import Training
from manifold_bench.defenses.variational_autoencoder import VariationalAutoencoderSettings
from manifold_bench.defenses.weights import freeze, weights_hash

GENERATOR = VariationalAutoencoderSettings(
    decoder="dense", latent=6, hidden=64, rate=5e-3, encoder_width=2, encoder_hidden=8, encoder_epochs=1
)
SETTINGS = RobustManifoldSettings(
    eta=0.5,
    pairs=24,
    every=4,
    attack_steps=20,
    attack_rate=0.3,
    confidence=1.0,
    width=8,
    hidden=32,
    batch_size=32,
    start_eps=0.3,
    start_steps=2,
)


def untrained(**changed: Any) -> RobustManifoldTraining:
    return RobustManifoldTraining(
        RobustManifoldTraining.Spec(
            shape=(1, 8, 8), num_classes=10, generator=GENERATOR, settings=dataclasses.replace(SETTINGS, **changed)
        )
    )


def images(digits: Digits) -> LabelledImages:
    return select(digits.train, range(0, 1000, 4))


@pytest.fixture(scope="module")
def parts(digits) -> dict[str, Any]:
    """The states of its parts; the classifier is trained plainly, which is faster."""
    defense = untrained()
    defense.generator.fit(images(digits), digits.validation, 0.06, 0, Progress())
    fit_classifier(
        defense.start.network,
        digits.train,
        digits.validation,
        Training(stage="classifier", seed=0, epochs=12, batch_size=32, rate=0.01),
        Progress(),
    )
    return {name: getattr(defense, name).state_dict() for name in defense.parts}


def built(parts: dict[str, Any], **changed: Any) -> RobustManifoldTraining:
    defense = untrained(**changed)
    for name, state in parts.items():
        getattr(defense, name).load_state_dict(state)
        freeze(getattr(defense, name))
    return defense


def fitted(
    parts: dict[str, Any], digits: Digits, progress: Progress | None = None, **changed: Any
) -> RobustManifoldTraining:
    defense = built(parts, **changed)
    defense.fit(images(digits), digits.validation, 0.02, 0, progress or Progress())
    return defense


def begun(parts: dict[str, Any], **changed: Any) -> RobustManifoldTraining:
    """With the classifier it begins with."""
    defense = built(parts, **changed)
    defense.network.load_state_dict(defense.start.network.state_dict())
    return defense.eval()


@pytest.fixture(scope="module")
def defense(parts, digits) -> RobustManifoldTraining:
    return fitted(parts, digits)


def test_it_learns_and_its_parts_stay_as_they_were(defense, parts, digits):
    x, y = digits.test.images, digits.test.labels
    assert (blockwise(defense, x).argmax(1) == y).float().mean() > 0.5
    assert not defense.training and not defense.rejects
    for name, state in parts.items():
        assert all(torch.equal(value, state[key]) for key, value in getattr(defense, name).state_dict().items())
    assert weights_hash(defense) != weights_hash(begun(parts))


def test_a_seed_gives_the_same_weights_whatever_happened_before(defense, parts, digits):
    torch.manual_seed(99)
    assert weights_hash(fitted(parts, digits)) == weights_hash(defense)


@pytest.mark.parametrize("eta", [0.35, 0.7])
def test_pairs_are_within_eta_and_classified_differently(parts, eta):
    defense = begun(parts, eta=eta)
    torch.manual_seed(0)
    first, second = defense.found_pairs(40)
    assert 0 < len(first) == len(second) <= 40
    assert ((first.double() - second.double()).flatten(1).norm(dim=1) <= eta + 1e-6).all()
    with torch.no_grad():
        assert (defense(first).argmax(1) != defense(second).argmax(1)).all()


def test_what_the_attack_did_not_find_is_left_out(parts, monkeypatch):
    defense = begun(parts)
    z, other = torch.randn(2, 8, GENERATOR.latent)
    found = torch.arange(8) % 3 == 0
    monkeypatch.setattr(
        enhanced_inc, "overpowered_pairs", lambda *args, **settings: Pairs(z, other, torch.zeros(8), found)
    )
    first, second = defense.found_pairs(8)
    with torch.no_grad():
        assert torch.equal(first, defense.generator(z[found])) and torch.equal(second, defense.generator(other[found]))


def test_where_no_pair_is_within_reach_the_training_is_as_without_them(parts, digits):
    """From 24 random pairs no single step gets so near; letting those in would change the weights."""
    without = weights_hash(fitted(parts, digits, weight=0.0))
    assert weights_hash(fitted(parts, digits, eta=1e-3, attack_steps=1, weight=5.0)) == without
    assert weights_hash(fitted(parts, digits, weight=5.0)) != without


def test_the_disagreement_is_the_symmetric_cross_entropy_of_pairs_answered_differently(parts, digits):
    defense = begun(parts)
    x = digits.test.images[:60]
    first, second = x[:30], x[30:]
    with torch.no_grad():
        p, q = defense(first), defense(second)
        differ = p.argmax(1) != q.argmax(1)
        expected = F.cross_entropy(p, q.softmax(1), reduction="none") + F.cross_entropy(
            q, p.softmax(1), reduction="none"
        )
        assert 0 < differ.sum() < 30
        torch.testing.assert_close(defense.disagreement(first, second), expected[differ].mean())
        assert defense.disagreement(first[~differ], second[~differ]) == 0
        assert defense.disagreement(first[:0], second[:0]) == 0


def enhanced(parts: dict[str, Any], digits: Digits, **changed: Any) -> EnhancedInvertAndClassify:
    """Fitted, on parts that are trained already; its classifier is the one it begins with."""
    solver = MomentumSolver(steps=10, rate=20.0)
    spec = EnhancedInvertAndClassifySpec(
        shape=(1, 8, 8), num_classes=10, generator=GENERATOR, training=SETTINGS, solver=solver, **changed
    )
    defense = EnhancedInvertAndClassify(spec)
    defense.generator.load_state_dict(parts["generator"])
    classifier = defense.classifier.network if spec.retrained else defense.classifier
    assert isinstance(classifier, nn.Module)
    states = parts["start"] if not spec.retrained else begun(parts).network.state_dict()
    classifier.load_state_dict(states)
    defense.fit(images(digits), digits.validation, 1.0, 0, Progress())
    return freeze(defense)


@pytest.mark.parametrize("retrained", [True, False])
def test_it_is_inc_with_that_classifier_or_the_classifier_alone(parts, digits, retrained):
    x = digits.test.images[:40]
    defense = enhanced(parts, digits, retrained=retrained)
    assert isinstance(defense.classifier, RobustManifoldTraining if retrained else PGDTraining)
    assert torch.equal(defense(x)[:, :10], defense.classifier(defense.perceived(x)))
    assert defense.rejects and torch.isfinite(defense.eta) and len(defense.gradient_modes) > 1
    alone = enhanced(parts, digits, retrained=retrained, project=False)
    assert torch.equal(alone(x), alone.classifier(x)) and torch.equal(alone.perceived(x), x)
    assert not alone.rejects and alone.eta.isinf() and alone.gradient_modes == ("default",)
    assert not enhanced(parts, digits, reject=False).rejects


def test_before_and_after_share_the_classifier_that_the_training_begins_with(parts, digits):
    """So it is trained once, and found in the zoo for both."""
    before, after = enhanced(parts, digits, retrained=False), enhanced(parts, digits)
    assert isinstance(after.classifier, RobustManifoldTraining)
    assert before.classifier.spec == after.classifier.start.spec
    assert after.classifier.generator.spec == after.generator.spec


def test_pairs_of_the_range_come_to_be_answered_alike(parts, digits):
    """The same pairs, found on the classifier that it begins with, before and after."""
    before, after = begun(parts), fitted(parts, digits, weight=2.0, epochs=10, rate=3e-3)
    torch.manual_seed(1)
    pairs = before.found_pairs(100)
    with torch.no_grad():
        assert sum_of(after, pairs) < 0.8 * sum_of(before, pairs)


def sum_of(defense: RobustManifoldTraining, pairs: tuple[Tensor, Tensor]) -> float:
    """Total variation between the answers to both images of each pair."""
    first, second = (defense(images).softmax(1) for images in pairs)
    return float((first - second).abs().sum())


class Broken(Progress):
    """Breaks off after the first epoch."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = folder

    def epoch(self, stage: str, done: int, epochs: int, **figures: float) -> None:
        raise KeyboardInterrupt


class Kept(Progress):
    def __init__(self, folder: Path) -> None:
        self.checkpoints = folder


def test_a_resumed_training_ends_with_the_same_weights(defense, parts, digits, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fitted(parts, digits, Broken(tmp_path))
    torch.manual_seed(5)
    assert weights_hash(fitted(parts, digits, Kept(tmp_path))) == weights_hash(defense)
