"""σ-zero, JSMA and VFGA: against the smallest number of pixels where it is known, and against other libraries."""

from __future__ import annotations

import pytest
import torch
from rejecting import Band, TwoClasses, Walled, images_below
from torch import Tensor
from toys import Colours, Linear, Toy, check_bits_in_any_company, check_wrong_inputs_stay, near_the_middle

from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.from_art import ArtAttack
from manifold_bench.attacks.from_foolbox import FoolboxAttack
from manifold_bench.attacks.jsma import JSMA, with_pair
from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.sigma_zero import SigmaZero, smooth_slope
from manifold_bench.attacks.target import Attacker, Target
from manifold_bench.attacks.threat import flat_norm, inside
from manifold_bench.attacks.vfga import VFGA
from manifold_bench.defenses.base import append_reject_score

INF = float("inf")
ATTACKS = {"sigma-zero": SigmaZero(steps=200), "jsma": JSMA(), "vfga": VFGA(steps=16)}
every = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


def pixels(attack, defense, x: Tensor, y: Tensor) -> Tensor:
    """How many pixels of each input the attack changes [N]; ∞ where the answer is not accepted and wrong."""
    out = attack.run(Target(defense, len(x)), x, y, INF, 0)
    assert inside(out, x, "l0", INF).all()
    return flat_norm(out - x, "l0").masked_fill(~defense.verdict(out).wrong(y), INF)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
@pytest.mark.parametrize("classes", [2, 4])
def test_sigma_zero_finds_the_closed_form_of_a_linear_model_on_any_scale(classes, scale):
    model, x = Linear(classes, scale), torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = model.verdict(x).labels
    found, least = pixels(SigmaZero(steps=200), model, x, y), model.distance(x, y, "l0")
    assert least.unique().numel() > 1 and (found >= least).all()
    assert (found <= least + 1).all() and (found == least).float().mean() > 0.9


def test_sigma_zero_counts_pixels_of_colour_images():
    model = Colours()
    x, y, least = model.images(24)
    found = pixels(SigmaZero(steps=300), model, x, y)
    assert least.max() >= 7 and (found >= least).all() and (found <= least + 1).all()
    assert (found == least).float().mean() > 0.7


def test_jsma_takes_the_best_pairs_of_pixels_of_a_linear_model():
    """With two opposite logits the best pairs are the largest contributions in order, two at a time."""
    model = Colours()
    x, y, least = model.images(24)
    assert torch.equal(pixels(JSMA(), model, x, y), 2 * (least / 2).ceil())


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("classes", [2, 4])
def test_vfga_finds_the_closed_form_of_a_linear_model_on_any_scale(classes, scale):
    model, x = Linear(classes, scale), torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = model.verdict(x).labels
    found, least = pixels(VFGA(steps=16), model, x, y), model.distance(x, y, "l0")
    assert (found >= least).all() and (found <= least + 1).all() and (found == least).float().mean() > 0.8


class Planted(Toy):
    """Class 1 where three pixels of images [N,1,5,5] sum to more than 2.5."""

    def answer(self, x: Tensor) -> Tensor:
        total = x.flatten(1)[:, [2, 11, 24]].sum(1)
        return torch.stack([2.5 - total, total - 2.5], dim=1) + 0 * x.flatten(1).sum(1, keepdim=True)


def test_vfga_finds_a_planted_example_of_three_pixels_and_changes_no_other():
    x, y = 0.2 * torch.rand(8, 1, 5, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(8, dtype=torch.long)
    out = VFGA(steps=3).run(Target(Planted(), 8), x, y, INF, 0)
    assert Planted().verdict(out).wrong(y).all()
    assert ((out != x).flatten(1).nonzero()[:, 1].view(8, 3) == torch.tensor([2, 11, 24])).all()


def test_within_a_limit_of_passes_vfga_keeps_what_it_met_until_then():
    model = Colours()
    x, y, least = model.images(24)
    queries = Queries(x, y, None, "l0", INF)
    limited = Target(model, 24, Attacker(max_passes=50), queries=queries)
    VFGA().run(limited, x, y, INF, 0)
    reached = queries.distance.isfinite()
    assert reached.any() and not reached.all() and (limited.spent | reached).all()
    assert model.verdict(queries.point).wrong(y)[reached].all()
    assert (limited.forwards + limited.backwards <= 50).all() and (queries.distance >= least)[reached].all()


def test_the_best_pair_is_that_of_the_paper_by_search_over_all_pairs():
    random = torch.Generator().manual_seed(0)
    x, slopes = torch.rand(6, 2, 3, 4, generator=random), torch.randn(6, 2, 2, 3, 4, generator=random)
    before = torch.where(torch.rand(6, 1, 3, 4, generator=random) < 0.3, 1 - x, x)
    after, found = with_pair(before, x, slopes)
    assert found.all() and torch.equal((after != before).any(1).flatten(1).sum(1), torch.full((6,), 2))
    for one, origin, ended, (up, down) in zip(before, x, after, slopes, strict=True):
        gain = torch.where(up > down, 1 - one, -one)
        rise, fall = (up * gain).sum(0).flatten(), (down * gain).sum(0).flatten()
        fresh = [i for i in range(12) if bool((one == origin).all(0).flatten()[i])]
        pairs = {(p, q): (rise[p] + rise[q], fall[p] + fall[q]) for p in fresh for q in fresh if p < q}
        allowed = {pair: float(-a * b) for pair, (a, b) in pairs.items() if a > 0 and b < 0}
        chosen = (ended != one).any(0).flatten().nonzero()[:, 0].tolist()
        assert tuple(chosen) == max(allowed, key=lambda pair: allowed[pair])


def test_the_slope_of_the_smooth_norm_is_its_derivative():
    delta = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_(True)
    square = delta.square().sum(1).flatten(1)
    (slope,) = torch.autograd.grad((square / (square + 0.01)).mean(1).sum(), delta)
    assert torch.allclose(smooth_slope(delta.detach(), 0.01), slope)


@every
def test_an_input_that_is_wrong_already_costs_one_forward_pass_and_stays_as_it_is(attack):
    check_wrong_inputs_stay(attack)
    assert attack.minimal and attack.knowledge == "white-box"


def test_passes_are_counted_and_never_more_than_passes_says():
    class Stubborn(Linear):
        """No answer is wrong: the margin stays above 10."""

        def answer(self, x: Tensor) -> Tensor:
            return super().answer(x) + torch.tensor([100.0, 0, 0, 0])

    x, y = near_the_middle(5), torch.zeros(5, dtype=torch.long)
    for attack in (SigmaZero(steps=7), JSMA(steps=3, targets=2), VFGA(steps=3, draws=2)):
        target = Target(Stubborn(4), 5)
        out = attack.run(target, x, y, INF, 0)
        assert torch.equal(out, x), "without a success the input comes back"
        assert (target.forwards == attack.passes()[0]).all() and (target.backwards == attack.passes()[1]).all()


@every
def test_rejection_is_not_success(attack):
    x, y = images_below(6)
    found = pixels(attack, Band(), x, y)
    assert (found <= 2).all()


@pytest.mark.parametrize("width", [0.25, 0.15, 0.05])
def test_sigma_zero_crosses_a_wall_of_rejection(width):
    """The accepted values of the first pixel are around 0.8, and 1 is rejected."""
    x, y = torch.full((2, 1, 2, 2), 0.2), torch.zeros(2, dtype=torch.long)
    assert pixels(SigmaZero(steps=100), Walled(width), x, y).tolist() == [1, 1]


class Guarded(TwoClasses):
    """Class 1 where the two upper pixels of images [N,1,2,2] are bright; rejected there unless the lower two are."""

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = x[:, 0].sum(2).unbind(1)
        logits = torch.stack([1 - upper, upper - 1], dim=1)
        return append_reject_score(logits, upper - 1.2 * lower)

    def verdict(self, x: Tensor) -> Verdict:
        logits = self(x)
        return Verdict(logits[:, :2].argmax(1), logits.argmax(1) == 2)


@every
def test_after_a_wrong_answer_the_reject_score_is_lowered(attack):
    """One pixel of each row suffices; JSMA takes the upper pair first, which is rejected."""
    x, y = torch.full((2, 1, 2, 2), 0.2), torch.zeros(2, dtype=torch.long)
    found = pixels(attack, Guarded(), x, y)
    assert (found <= 4).all() and (found >= 2).all()


@every
def test_results_are_the_same_bits_in_any_company(attack):
    check_bits_in_any_company(attack)


def test_a_model_without_a_slope_leaves_the_inputs_as_they_are():
    class Flat(Toy):
        def answer(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0]) + 0 * x.flatten(1).sum(1, keepdim=True)

    x, y = near_the_middle(3), torch.zeros(3, dtype=torch.long)
    for attack in (SigmaZero(steps=20), JSMA(steps=5), VFGA(steps=5)):
        assert torch.equal(attack.run(Target(Flat(), 3), x, y, INF, 0), x)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SigmaZero(steps=100), FoolboxAttack(attack="L0FMNAttack", norm="l0", parameters={"steps": 100})),
        (JSMA(), ArtAttack(attack="SaliencyMapMethod", norm="l0", parameters={"theta": 1.0, "gamma": 0.5})),
    ],
    ids=["sigma-zero", "jsma"],
)
def test_what_others_find_changes_no_fewer_pixels(ours, theirs, digits, digits_cnn):
    x, y = digits.test.images[:24], digits.test.labels[:24]
    a, b = pixels(ours, digits_cnn, x, y), pixels(theirs, digits_cnn, x, y)
    assert a.isfinite().sum() >= b.isfinite().sum() - 1 and b.isfinite().sum() > 8
    assert a.median() <= b.median()
