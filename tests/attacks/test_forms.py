"""Attacks on defenses that project or reject do the same whatever form the outputs have, and show the harness all."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from projecting import IN_PLANE, NEAR_PLANE, Part, Projects, classifier
from rejecting import TwoDetectors
from torch import Tensor, nn

from manifold_bench.attacks.apgd import APGD
from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.carlini_wagner import CarliniWagner
from manifold_bench.attacks.combined import Combined
from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.deepfool import DeepFool
from manifold_bench.attacks.detector_lagrangian import DetectorLagrangian
from manifold_bench.attacks.fab import FAB
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.latent import Latent
from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.selective import LogitMatching, OrthogonalPGD, SelectivePGD
from manifold_bench.attacks.square import Square
from manifold_bench.attacks.target import Attacker, Target
from manifold_bench.attacks.threat import inside
from manifold_bench.attacks.tracking import Tracking
from manifold_bench.defenses.base import append_reject_score

LABELS = Projects().verdict(NEAR_PLANE).labels

FORMS = {
    "tiny": lambda z: 0.01 * z,
    "large": lambda z: 100 * z,
    "huge": lambda z: 1e4 * z,
    "shifted": lambda z: z + 10,
    "log-probabilities": lambda z: z.log_softmax(1),
    "probabilities": lambda z: z.softmax(1),
    "sharp probabilities": lambda z: (5 * z).softmax(1),
    "float64": lambda z: z.double(),
}

ON_RANGES: dict[str, Attack] = {
    "tracking": Tracking(norm="l2", steps=20, refresh=5),
    "tracking-linf": Tracking(steps=20, refresh=5),
    "latent": Latent(norm="l2", steps=60),
    "combined": Combined(norm="l2", starts=1, steps=60),
}

EPS = {"l2": 0.12, "linf": 0.04}


def beaten(defense: nn.Module, attack: Attack, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Whether each input is beaten within ε."""
    target = Target(defense, len(x), Attacker(held_out=TwoDetectors().held_out))
    out = attack.run(target, x, y, math.inf if attack.minimal else eps, 0)
    return defense.verdict(out).wrong(y) & inside(out, x, attack.norm, eps)


@pytest.mark.parametrize("name", ON_RANGES)
def test_the_form_of_a_projection_s_outputs_changes_no_robustness(name):
    attack = ON_RANGES[name]
    plain = int(beaten(Projects(0.2), attack, NEAR_PLANE, LABELS, EPS[attack.norm]).sum())
    assert 3 <= plain <= 21, "the case would show nothing"
    for form, function in FORMS.items():
        defense = Projects(0.2)
        defense.classifier = Part(lambda x, function=function: function(classifier(x)))
        found = int(beaten(defense, attack, NEAR_PLANE, LABELS, EPS[attack.norm]).sum())
        assert abs(found - plain) <= 1, form


class Strip(nn.Module):
    """Three classes of images [N,1,2,2] by the first two pixels; rejects what is far from a strip around b = .3."""

    num_classes, rejects, randomized = 3, True, False
    gradient_modes, detectors, classifier = ("default",), (), None

    def __init__(self, form) -> None:
        super().__init__()
        self.form, self.two = form, TwoDetectors()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.two.classifier(x)
        return self.form(append_reject_score(logits, ((x[:, 0, 0, 1] - 0.3).abs() - 0.1) / 10))

    def verdict(self, x: Tensor) -> Verdict:
        logits = self(x)
        labels = logits[:, : self.num_classes].argmax(1)
        return Verdict(labels, logits.argmax(1) == self.num_classes)


ON_DETECTORS: dict[str, Attack] = {
    "pgd": PGD(steps=20),
    "apgd": APGD(steps=20),
    "square": Square(queries=100, norm="l2"),
    "fab": FAB(steps=10, targets=2),
    "fab-l2": FAB(steps=10, targets=2, norm="l2"),
    "deepfool": DeepFool(),
    "deepfool-l2": DeepFool(norm="l2"),
    "carlini-wagner": CarliniWagner(steps=60, rate=0.02, searches=3),
    "selective-pgd": SelectivePGD(steps=20),
    "orthogonal-pgd": OrthogonalPGD(steps=20),
    "logit-matching": LogitMatching(steps=20),
    "detector-lagrangian": DetectorLagrangian(steps=60),
}


class Named(TwoDetectors):
    """The same with a name for each of its detectors, whose ratios have one form only."""

    def __init__(self, form) -> None:
        super().__init__()
        self.form = form

    def detection(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits, ratios = super().detection(x, labels)
        return append_reject_score(self.form(logits[:, :3]), logits[:, 3] - logits[:, :3].amax(1)), ratios


@pytest.mark.parametrize("name", ["selective-pgd", "orthogonal-pgd", "logit-matching", "detector-lagrangian"])
def test_the_form_of_logits_of_a_defense_with_named_detectors_changes_no_robustness(name):
    attack, (x, y) = ON_DETECTORS[name], TwoDetectors().images(24)
    plain = int(beaten(Named(lambda z: z), attack, x, y, 0.1).sum())
    assert 3 <= plain <= 21, "the case would show nothing"
    for form in ("tiny", "large", "huge", "shifted"):
        assert abs(int(beaten(Named(FORMS[form]), attack, x, y, 0.1).sum()) - plain) <= 1, form


@pytest.mark.parametrize("name", ON_DETECTORS)
def test_the_form_of_a_detector_s_outputs_changes_no_robustness(name):
    attack, (x, y) = ON_DETECTORS[name], TwoDetectors().images(24)
    eps = 0.18 if attack.norm == "linf" else 0.3
    plain = int(beaten(Strip(lambda z: z), attack, x, y, eps).sum())
    assert plain >= 3, "the case would show nothing"
    for form in ("tiny", "large", "huge", "shifted", "float64"):
        assert abs(int(beaten(Strip(FORMS[form]), attack, x, y, eps).sum()) - plain) <= 1, form


class Masked(Strip):
    """The same with a class that is never the answer."""

    num_classes = 4

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.cat([logits[:, :3], torch.full_like(logits[:, :1], -torch.inf), logits[:, 3:]], dim=1)


@pytest.mark.parametrize("name", ON_DETECTORS)
def test_a_masked_class_of_a_detector_changes_no_robustness(name):
    attack, (x, y) = ON_DETECTORS[name], TwoDetectors().images(24)
    if isinstance(attack, LogitMatching):
        attack = replace(attack, targets=2)  # the masked one has no clean images
    eps = 0.18 if attack.norm == "linf" else 0.3
    plain = int(beaten(Strip(lambda z: z), attack, x, y, eps).sum())
    assert abs(int(beaten(Masked(lambda z: z), attack, x, y, eps).sum()) - plain) <= 1


# --- what the harness sees of attacks that look at parts themselves ---------------------------------------------------


class Flat(Projects):
    """Every image is of class 1, and no gradient says how that could change."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = Part(lambda x: torch.tensor([0.0, 1.0, 0.0]).expand(len(x), 3) + 0 * x.flatten(1)[:, :1])

    def verdict(self, x: Tensor) -> Verdict:
        return Verdict(self.classifier(x).argmax(1), torch.zeros(len(x), dtype=torch.bool))


def watched(defense: nn.Module, attack: Attack, x: Tensor, y: Tensor, eps: float) -> Queries:
    queries = Queries(x, y, None, attack.norm, eps)
    attack.run(Target(defense, len(x), queries=queries), x, y, eps, 0)
    return queries


@pytest.mark.parametrize("name", ON_RANGES)
def test_an_attack_on_latents_without_a_gradient_is_recorded_as_one(name):
    attack = ON_RANGES[name]
    seen = watched(Flat(), attack, IN_PLANE, torch.ones(24, dtype=torch.long), EPS[attack.norm])
    assert (seen.gradients > 0).all() and not seen.improved.any()
    if isinstance(attack, Tracking):
        assert torch.equal(seen.blind, seen.gradients) and seen.moved.all(), "it goes aside at random"
    else:
        assert (seen.blind > 0).all()


@pytest.mark.parametrize("name", ON_RANGES)
def test_an_honest_attack_on_latents_is_recorded_as_one(name):
    attack = ON_RANGES[name]
    seen = watched(Projects(), attack, NEAR_PLANE, LABELS, EPS[attack.norm] / 4)
    robust = seen.distance.isinf()
    assert robust.sum() >= 3 and (seen.gradients > 0).all()
    assert (seen.blind[robust] == 0).all() and seen.moved.all() and seen.improved.all()


def test_a_descent_with_multipliers_records_its_gradients():
    x, y = TwoDetectors().images(4)
    steep = watched(Strip(lambda z: z), DetectorLagrangian(steps=10), x, y, 0.01)
    flat = watched(Strip(lambda z: z.detach() + 0 * z), DetectorLagrangian(steps=10), x, y, 0.01)
    assert (steep.gradients > 0).all() and not steep.blind.any()
    assert torch.equal(flat.blind, flat.gradients) and (flat.gradients > 0).all()
