"""A classifier by the nearest centre falls for the same images, whatever function of the distances it returns.

Its boundaries are planes, so that the distance of each image to the nearest one is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toys import Toy

import manifold_bench as mb
from manifold_bench.attacks.apgd import APGD
from manifold_bench.attacks.autoattack import AutoAttack
from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.carlini_wagner import CarliniWagner
from manifold_bench.attacks.deepfool import DeepFool
from manifold_bench.attacks.ead import EAD
from manifold_bench.attacks.fab import FAB
from manifold_bench.attacks.from_art import ArtAttack
from manifold_bench.attacks.from_foolbox import FoolboxAttack
from manifold_bench.attacks.gradient import FGSM, MIM, PGD
from manifold_bench.attacks.outputs import Scored
from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.square import Square
from manifold_bench.attacks.target import Attacker, Target
from manifold_bench.attacks.threat import Norm, inside
from manifold_bench.defenses.models import ModelSpec, as_defense

RANDOM = torch.Generator().manual_seed(3)
CENTRES = (0.5 + 0.1 * torch.randn(5, 16, generator=RANDOM)).clamp(0.3, 0.7)
X = (CENTRES.repeat(8, 1) + 0.05 * torch.randn(40, 16, generator=RANDOM)).clamp(0.25, 0.75).view(40, 1, 4, 4)
SQUARES = torch.cdist(X.flatten(1).double(), CENTRES.double()).square()
Y = SQUARES.argmin(1)
MEAN = float(SQUARES.mean())


def distances(norm: Norm) -> Tensor:
    """The distance of each image to the nearest boundary, [N]; the box [0,1] is farther away."""
    between = CENTRES.double()[Y][:, None] - CENTRES.double()
    dual = between.norm(p={"linf": 1, "l2": 2, "l1": torch.inf}[norm], dim=2)
    gaps = SQUARES - SQUARES.gather(1, Y[:, None])
    return (gaps / (2 * dual)).nan_to_num(math.inf).amin(1)


def gauss(s: float) -> Callable[[Tensor], Tensor]:
    return lambda z: (z / (2 * s**2)).exp()


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda z: 10 * z,
    "huge logits": lambda z: 1e5 * z,
    "positive logits": lambda z: 10 * z + 10,
    "logits from 0 on": lambda z: (10 * (z + MEAN)).relu(),
    "small logits from 0 on": lambda z: (z + 2 * MEAN).relu(),
    "probabilities": lambda z: (100 * z).softmax(1),
    "sharp probabilities": lambda z: (500 * z).softmax(1),
    "likelihoods, s = 0.03": gauss(0.03),
    "likelihoods, s = 0.05": gauss(0.05),
    "likelihoods, s = 0.1": gauss(0.1),
    "likelihoods, s = 0.2": gauss(0.2),
    "likelihoods, s = 1": gauss(1.0),
    "densities": lambda z: gauss(0.05)(z) * (2 * math.pi * 0.05**2) ** -8,
    "likelihoods in float64": lambda z: gauss(0.02)(z.double()),
    "sigmoids": lambda z: (40 * (z + MEAN)).sigmoid(),
    "sharp sigmoids in float64": lambda z: (120 * (z.double() + MEAN) - 12).sigmoid(),
    "sigmoids near 0": lambda z: (100 * (z + MEAN) - 20).sigmoid(),
    "sigmoids near 1 in float64": lambda z: (40 * (z.double() + MEAN) + 10).sigmoid(),
}

ATTACKS: dict[str, tuple[Attack, ...]] = {
    "fgsm": (FGSM(), FGSM(norm="l2")),
    "mim": (MIM(), MIM(norm="l2")),
    "pgd": (PGD(steps=20), PGD(steps=20, norm="l2")),
    "apgd": (APGD(steps=20), APGD(steps=20, norm="l2")),
    "apgd-dlr": (APGD(steps=20, loss="dlr"),),
    "fab": (FAB(steps=15, targets=3), FAB(steps=15, targets=3, norm="l2")),
    "deepfool": (DeepFool(), DeepFool(norm="l2")),
    "carlini-wagner": (CarliniWagner(steps=60, rate=0.01, searches=3),),
    "ead": (EAD(steps=60, searches=6, c=0.1),),
    "square": (Square(queries=200),),
    "autoattack": (AutoAttack(),),
    "art": (ArtAttack(attack="ProjectedGradientDescentPyTorch", parameters={"max_iter": 20}),),
    "foolbox": (FoolboxAttack(attack="L2DeepFoolAttack", norm="l2"),),
}


class Nearest(Toy):
    """Five classes; outputs are a function of minus the squared distances to the centres [N,5].

    held: whether the centres are a parameter. Otherwise a copy in double precision has single ones.
    """

    num_classes = 5
    detectors: tuple[str, ...] = ()

    def __init__(self, form: Callable[[Tensor], Tensor], held: bool = True) -> None:
        super().__init__()
        self.form = form
        self.centres = nn.Parameter(CENTRES.clone()) if held else None

    def answer(self, x: Tensor) -> Tensor:
        centres = CENTRES if self.centres is None else self.centres
        return self.form(-(x.flatten(1)[:, None] - centres).square().sum(2))


def fallen(defense: Toy, attack: Attack, eps: float) -> Tensor:
    """Which images fall within ε; of AutoAttack, which is slow, every fifth is tried."""
    x, y = (X[::5], Y[::5]) if isinstance(attack, AutoAttack) else (X, Y)
    out = attack.run(Target(defense, len(x), Attacker(clean=X)), x, y, math.inf if attack.minimal else eps, 0)
    return defense.verdict(out).wrong(y) & inside(out, x, attack.norm, eps)


@pytest.fixture(scope="module")
def plain() -> dict[Attack, int]:
    """How many images fall for each attack where the outputs are logits."""
    return {}


@pytest.mark.parametrize("form", list(FORMS)[1:])
@pytest.mark.parametrize(
    "name", [pytest.param(a, marks=pytest.mark.slow if a == "autoattack" else ()) for a in ATTACKS]
)
def test_any_form_of_the_outputs_falls_for_the_same_images(plain, name, form):
    for attack in ATTACKS[name]:
        eps = float(distances(attack.norm).median())
        if attack not in plain:
            plain[attack] = int(fallen(Nearest(FORMS["logits"]), attack, eps).sum())
        assert 3 <= plain[attack] <= 20, "of 40 images 20 can fall"
        assert abs(int(fallen(Nearest(FORMS[form]), attack, eps).sum()) - plain[attack]) <= 1


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_form_is_the_one_with_straight_margins(form, held):
    expected = "logits" if "logits" in form else "sigmoids" if "sigmoids" in form else "likelihoods"
    as_good = {"likelihoods, s = 1": "logits", "sigmoids near 0": "likelihoods"}
    assert Scored(Nearest(FORMS[form], held), 5).chosen_form(X) in (expected, as_good.get(form))


def test_a_network_s_logits_remain_logits_where_they_are_positive(digits, digits_cnn):
    x = digits.test.images[:100]
    for change in (lambda z: z + 40, torch.relu, lambda z: 0.01 * z.relu(), lambda z: z + 1e3, lambda z: z.relu() + 5):
        network = nn.Sequential(digits_cnn, Changed(change))
        assert (network(x) >= 0).all() and Scored(network, 10).chosen_form(x) == "logits"


class Changed(nn.Module):
    """A function of outputs as a layer."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, z: Tensor) -> Tensor:
        return self.change(z)


@pytest.mark.parametrize("form", ["likelihoods, s = 0.05", "sigmoids", "likelihoods in float64"])
def test_a_part_with_another_form_of_outputs_is_attacked_by_that_form(form):
    """The classifier inside a defense, attacked by one who knows nothing else."""
    whole = Nearest(FORMS["logits"])
    whole.classifier = Nearest(FORMS[form])
    eps = float(distances("linf").median())
    plain = int(fallen(Nearest(FORMS["logits"]), PGD(steps=20), eps).sum())
    assert abs(int(fallen(whole, PGD(part="classifier", steps=20), eps).sum()) - plain) <= 1


def test_a_likelihood_that_is_zero_everywhere_has_no_gradient_and_is_recorded_so():
    queries = Queries(X, Y, None, "linf", 0.1)
    nothing = Nearest(gauss(0.002), held=False)
    target = Target(nothing, len(X), Attacker(clean=X), queries=queries)
    PGD(steps=5).run(target, X, Y, 0.1, 0)
    right = Y == 0  # it answers 0 for every image
    assert (queries.gradients[right] > 0).all() and torch.equal(queries.blind, queries.gradients)

    found = mb.evaluate(nothing, (X, Y), attacks=["pgd", "apgd"], eps=0.1)
    rows = found.records[(found.records["kind"] == "attack") & (found.records["label"] == 0)]
    assert len(rows) and (rows["blind"] == 1).all() and not rows["success"].any()


@pytest.mark.parametrize(
    "rows",
    [
        [[0.5 - 1e-12, 0.5 + 1e-12], [1e-30, 1.0]],
        [[1 - 1e-12, 1 - 1e-13], [0.3, 1 - 1e-14]],
        [[1e-60, 2e-60], [0.0, 1e-300]],
        [[1e-3, 1e-3 + 1e-15], [0.2, 0.9]],
    ],
)
def test_outputs_in_double_precision_that_single_precision_makes_equal_keep_their_order(rows):
    outputs = torch.tensor(rows, dtype=torch.float64)
    model = as_defense(lambda x: outputs[(x.flatten(1)[:, 0] > 0.5).long()], ModelSpec(shape=(1, 1, 1), num_classes=2))
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    assert model.verdict(x).labels.tolist() == [1, 1]
    for clean in (x, x[:1], x[1:]):
        assert (Scored(model, 2, clean)(x).argmax(1) == 1).all()


@pytest.mark.parametrize("form", ["likelihoods, s = 0.05", "sigmoids", "sigmoids near 1 in float64", "densities"])
@pytest.mark.parametrize("held", [True, False])
def test_a_model_that_is_handed_over_is_attacked_as_what_it_is(form, held):
    eps = float(distances("linf").median())
    exact = distances("linf") <= eps
    found = mb.attack("pgd", Nearest(FORMS[form], held), (X, Y), eps=1.05 * eps, loss="margin", targeted=True)
    assert found.success[exact].all()
    assert not found.success[distances("linf") > 1.05 * eps].any()
