"""What a defense may hand out, and that the attacks do the same whatever form it has."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from toys import Linear, Toy, near_the_middle

from manifold_bench.attacks.apgd import APGD
from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import BLOCK, blockwise, pad_to_block
from manifold_bench.attacks.carlini_wagner import CarliniWagner
from manifold_bench.attacks.deepfool import DeepFool
from manifold_bench.attacks.fab import FAB
from manifold_bench.attacks.from_art import ArtAttack
from manifold_bench.attacks.from_foolbox import FoolboxAttack
from manifold_bench.attacks.gradient import FGSM, MIM, PGD
from manifold_bench.attacks.outputs import Scored, logits_of, masked_classes
from manifold_bench.attacks.square import Square
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import inside


def masked_by(z: Tensor, value: float) -> Tensor:
    return torch.cat([z, torch.full_like(z[:, :1], value)], dim=1)


FORMS = {
    "as it is": lambda z: z,
    "tiny": lambda z: 0.01 * z,
    "large": lambda z: 100 * z,
    "huge": lambda z: 1e4 * z,
    "shifted": lambda z: z + 1e3,
    "log-probabilities": lambda z: z.log_softmax(1),
    "probabilities": lambda z: z.softmax(1),
    "sharp probabilities": lambda z: (5 * z).softmax(1),
    "probabilities that underflow": lambda z: (25 * z).softmax(1),
    "float64": lambda z: z.double(),
    "probabilities in float64": lambda z: z.double().softmax(1),
    "probabilities in bfloat16": lambda z: (0.3 * z).softmax(1).bfloat16(),
    "tanh": lambda z: (0.5 * z).tanh(),
    "log-sigmoids": nn.functional.logsigmoid,
    "sigmoids less one": lambda z: z.sigmoid() - 1,
    "a masked class": lambda z: torch.cat([z, torch.full_like(z[:, :1], -torch.inf)], dim=1),
    "many masked classes": lambda z: torch.cat([z, torch.full_like(z, -torch.inf)], dim=1),
    "a class masked by -300": lambda z: masked_by(z, -300.0),
    "a class masked by -1e4": lambda z: masked_by(z, -1e4),
    "a class masked by -1e9": lambda z: masked_by(z, -1e9),
    "a class masked by the least float": lambda z: masked_by(z, torch.finfo(z.dtype).min),
    "many classes masked by -1e9": lambda z: torch.cat([z, z - 1e9], dim=1),
}

ATTACKS: dict[str, Attack] = {
    "fgsm": FGSM(),
    "mim": MIM(),
    "bim": PGD(steps=10, random_start=False),
    "pgd": PGD(steps=10),
    "pgd-l2": PGD(steps=10, norm="l2"),
    "pgd-targeted": PGD(steps=10, targeted=True),
    "apgd": APGD(steps=15),
    "apgd-dlr": APGD(steps=15, loss="dlr", targets=3),
    "fab": FAB(steps=10, targets=3),
    "fab-l2": FAB(steps=10, targets=3, norm="l2"),
    "deepfool": DeepFool(),
    "deepfool-l2": DeepFool(norm="l2"),
    "carlini-wagner": CarliniWagner(steps=60, rate=0.02),
    "square": Square(queries=100),
}


class Formed(Toy):
    """A classifier whose outputs have another form."""

    def __init__(self, network: nn.Module, form: str) -> None:
        super().__init__()
        self.network, self.form = network, FORMS[form]
        self.num_classes = 10 + form.startswith("a ") + 10 * form.startswith("many ")

    def answer(self, x: Tensor) -> Tensor:
        return self.form(self.network(x))


def fallen(defense: Toy, attack: Attack, x: Tensor, y: Tensor) -> int:
    eps = 0.12 if attack.norm == "linf" else 0.6
    out = attack.run(Target(defense, len(x)), x, y, math.inf if attack.minimal else eps, 0)
    return int((defense.verdict(out).wrong(y) & inside(out, x, attack.norm, eps)).sum())


@pytest.fixture(scope="module")
def cases(digits, digits_cnn) -> tuple[nn.Module, Tensor, Tensor, dict[str, int]]:
    x, y = digits.test.images[:24], digits.test.labels[:24]
    plain = Formed(digits_cnn, "as it is")
    return digits_cnn, x, y, {name: fallen(plain, attack, x, y) for name, attack in ATTACKS.items()}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "as it is"])
def test_the_form_of_the_outputs_changes_no_robustness(cases, name, form):
    network, x, y, plain = cases
    assert plain[name] >= 3, "the case would show nothing"
    # bfloat16 has eight bits: what it rounds away nobody can follow
    slack = 3 if "bfloat16" in form else 1
    assert abs(fallen(Formed(network, form), ATTACKS[name], x, y) - plain[name]) <= slack


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=5),
        FAB(steps=5, targets=2),
        DeepFool(),
        APGD(steps=5),
        CarliniWagner(steps=20, searches=2, rate=0.05),
        Square(queries=50),
        ArtAttack(attack="ProjectedGradientDescentPyTorch", parameters={"max_iter": 5}),
        ArtAttack(attack="DeepFool", norm="l2", parameters={"max_iter": 5}),
        FoolboxAttack(attack="LinfPGD", parameters={"steps": 5}),
    ],
    ids=lambda attack: getattr(attack, "name", type(attack).__name__),
)
def test_outputs_may_have_any_float_type(attack, kind):
    model = Linear(2)

    class Cast(Toy):
        def answer(self, x: Tensor) -> Tensor:
            return model(x).to(kind)

    x = near_the_middle(11)
    y = model.verdict(x).labels
    out = attack.run(Target(Cast(), 11), x, y, 1.0, 0)
    assert out.dtype == torch.float32 and Cast().verdict(out).wrong(y).sum() >= 5


@pytest.mark.parametrize("n", [1, 7, 8, 37, 40])
@pytest.mark.parametrize(
    "attack",
    [
        FGSM(),
        PGD(steps=8),
        MIM(),
        Square(queries=60),
        FAB(steps=5, targets=1),
        ArtAttack(attack="FastGradientMethod"),
        FoolboxAttack(attack="LinfFastGradientAttack"),
    ],
    ids=lambda attack: getattr(attack, "name", type(attack).__name__),
)
def test_a_defense_that_changes_its_input_in_place_is_attacked_as_one_that_does_not(attack, n):
    model = Linear(2)

    class Normalises(Toy):
        def answer(self, x: Tensor) -> Tensor:
            x.sub_(0.5).div_(0.5)
            x.mul_(0.5).add_(0.5)
            answer = model(x)
            with torch.no_grad():
                x.fill_(-7.0)
            return answer

    x = near_the_middle(n)
    y, given = model.verdict(x).labels, x.clone()
    eps = 1.5 * float(model.distance(x, y, "linf").amax())
    out = attack.run(Target(Normalises(), n), x, y, eps, 0)
    assert torch.equal(x, given)
    assert torch.allclose(out, attack.run(Target(model, n), x, y, eps, 0), atol=1e-5)
    if attack.knowledge == "white-box":
        assert model.verdict(out).wrong(y).all()


@pytest.mark.parametrize("n", [1, BLOCK - 1, BLOCK, 3 * BLOCK])
def test_whole_blocks_are_copies(n):
    x = torch.rand(n, 1, 2, 2)
    given = x.clone()
    pad_to_block(x).fill_(9.0)
    blockwise(lambda part: part.fill_(9.0).flatten(1), x)
    assert torch.equal(x, given)


def test_what_a_defense_hands_out_is_copied():
    kept = torch.zeros(8, 3)
    logits = Scored(lambda x: kept, 3)(torch.rand(8, 1, 2, 2))
    kept.fill_(5.0)
    assert (logits == 0).all()


def test_probabilities_are_known_by_their_sum_and_sign():
    x = torch.rand(3, 1, 2, 2)

    def scored(rows: list[list[float]]) -> Tensor:
        return Scored(lambda x: torch.tensor(rows)[torch.arange(len(x)).clamp_max(2)], 3)(x)

    rows = [[0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [1.0, 0.0, 0.0]]
    logits = scored(rows)
    assert torch.allclose(logits[:2], torch.tensor(rows[:2]).log())
    assert logits[2].argmax() == 0 and logits.isfinite().all()
    for other in ([0.2, 0.5, 0.5], [-0.1, 0.6, 0.5]):
        assert torch.equal(scored([rows[0], rows[1], other]), torch.tensor([rows[0], rows[1], other]))
    with_reject = [[0.2, 0.5, 0.3, 0.9], [0.2, 0.4, 0.3, 0.1], [0.2, 0.5, 0.3, -4.0]]
    logits = scored(with_reject)
    assert torch.allclose(logits[:2], torch.tensor(with_reject[:2]).log())
    assert torch.equal(logits.argmax(1), torch.tensor(with_reject).argmax(1)) and logits.isfinite().all()


def test_the_gradient_of_a_vanishing_probability_does_not_vanish():
    z = torch.tensor([[0.0, -95.0, -300.0]], requires_grad=True)
    logits = logits_of(z.softmax(1), torch.float32, "likelihoods", 3)
    (gradient,) = torch.autograd.grad(logits[0, 1] - logits[0, 0], z)
    assert gradient.isfinite().all() and gradient[0, 1] > 0
    assert torch.allclose(gradient / gradient[0, 1], torch.tensor([[-1.0, 1.0, 0.0]]), atol=1e-3)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_nan_is_no_answer_and_fails_by_name(attack):
    class Broken(Linear):
        def answer(self, x: Tensor) -> Tensor:
            logits = super().answer(x)
            return logits.masked_fill(torch.arange(len(x))[:, None] == 2, torch.nan)

    x = near_the_middle(8)
    with pytest.raises(ValueError, match="NaN"):
        attack.run(Target(Broken(4), 8), x, torch.zeros(8, dtype=torch.long), 0.1, 0)


@pytest.mark.parametrize("attack", [CarliniWagner(steps=200), CarliniWagner(), FAB(steps=20, targets=3, norm="l2")])
def test_black_and_white_images_are_attacked_too(digits, digits_cnn, attack):
    """Pixels that are 0 and 1 exactly: the gradient of a variable whose tanh is the image vanishes there."""
    x = (digits.test.images[:12] > 0.5).float()
    y = digits_cnn.verdict(x).labels
    out = attack.run(Target(digits_cnn, 12), x, y, math.inf, 0)
    assert digits_cnn.verdict(out).wrong(y).all()


@pytest.mark.parametrize(
    "attack",
    [PGD(steps=40, random_start=False), MIM(steps=30), APGD(steps=40), FAB(steps=30), DeepFool(), DeepFool(norm="l2")],
)
def test_a_start_without_any_gradient_is_left(attack):
    """Flat within 0.02 of the middle, and a linear classifier beyond."""

    class Plateau(Linear):
        def answer(self, x: Tensor) -> Tensor:
            aside = x - 0.5
            return super().answer(0.5 + aside.sign() * torch.relu(aside.abs() - 0.02)) + torch.tensor([0.05, 0.0])

    model, x = Plateau(2), torch.full((6, 1, 4, 4), 0.5)
    y = model.verdict(x).labels
    out = attack.run(Target(model, 6), x, y, 0.4, 0)
    assert model.verdict(out).wrong(y).all()


def test_outputs_without_a_gradient_fail_by_name():
    class Hard(Linear):
        def answer(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(super().answer(x).argmax(1), 4).float()

    x = near_the_middle(8)
    y = Hard(4).verdict(x).labels
    with pytest.raises(ValueError, match="no gradient"):
        PGD().run(Target(Hard(4), 8), x, y, 0.1, 0)
    assert Hard(4).verdict(Square(queries=50).run(Target(Hard(4), 8), x, y, 0.9, 0)).wrong(y).any()


def test_a_gradient_that_never_reaches_the_images_is_said_in_words():
    class Head(Linear):
        """Its last layer alone has gradients, in its weights."""

        def answer(self, x: Tensor) -> Tensor:
            return super().answer(x).detach() * nn.Parameter(torch.ones(()))

    with pytest.raises(ValueError, match="none in the images"):
        PGD(steps=1).run(Target(Head(2), 2), near_the_middle(2), torch.tensor([0, 1]), 0.1, 0)


@pytest.mark.parametrize(
    ("rows", "masked"),
    [
        ([[3.0, 1.0, -1e4], [0.0, 2.0, -1e4]], [False, False, True]),
        ([[3.0, -1e9, 1.0, -math.inf], [0.0, -1e9, 2.0, -math.inf]], [False, True, False, True]),
        ([[3.0, 1.0, -30.0], [0.0, 2.0, -30.0]], [False, False, False]),  # ten times the range of the others: 30
        ([[3.0, 1.0, -1e4], [0.0, 2.0, 1.0]], [False, False, False]),  # it is possible for the second image
        ([[5.01, 5.0, -1.0], [5.01, 5.0, -1.0]], [False, False, False]),  # images of one class tell no range
        ([[3.0, -1e4], [0.0, -1e4]], [False, False]),  # a single class is left
    ],
)
def test_masked_classes_are_far_below_the_range_of_all_others(rows, masked):
    assert masked_classes(torch.tensor(rows)).tolist() == masked


def test_a_reject_score_is_never_masked():
    scored = Scored(
        lambda x: torch.cat([x.flatten(1), x.new_full((len(x), 1), -1e9)], dim=1), 4, torch.rand(8, 1, 2, 2)
    )
    assert (scored(torch.rand(3, 1, 2, 2))[:, 4] == -1e9).all() and scored.masked is None
