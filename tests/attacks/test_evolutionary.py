"""Evolution on models whose accepted regions are known, and its two operators by themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.evolutionary import Evolutionary, fitness, mutated
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.defenses.base import append_reject_score

INF = float("inf")
CENTRES = torch.tensor([0.2, 0.5, 0.8])
X = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)).repeat_interleave(3, 0)
AIMS = torch.arange(3).repeat(4)
NONE = torch.full((12,), -1)


class Bands(nn.Module):
    """Images [N,1,2,2], by their mean: the class of the nearest of three centres; rejects what is `width` off it.

    Before the class aimed at is reached, its reject score leads to another class's centre.
    """

    num_classes = 3
    rejects = True
    randomized = False
    gradient_modes: tuple[str, ...] = ("default",)
    detectors: tuple[str, ...] = ()
    classifier = None

    def __init__(self, width: float = 0.02) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        off = (x.mean((1, 2, 3))[:, None] - CENTRES).abs()
        return append_reject_score(-off.square(), off.amin(1) / self.width - 1)

    def verdict(self, x: Tensor) -> Verdict:
        logits = self(x)
        return Verdict(logits[:, :3].argmax(1), logits.argmax(1) == 3)


class Unguarded(Bands):
    rejects = False

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :3]


class Closed(Bands):
    """Rejects everything."""

    def forward(self, x: Tensor) -> Tensor:
        return append_reject_score(super().forward(x)[:, :3], torch.ones(len(x)))


def target(defense: nn.Module, aims: Tensor | None = AIMS, **options: int) -> Target:
    return Target(defense, 12 if aims is None else len(aims), Attacker(aims=aims, **options))  # type: ignore[arg-type]


def fooled(defense: Bands, images: Tensor, aims: Tensor = AIMS) -> list[bool]:
    answer = defense.verdict(images)
    return (~answer.rejected & (answer.labels == aims)).tolist()


@pytest.mark.parametrize("defense", [Bands(), Unguarded()], ids=["rejecting", "not rejecting"])
@pytest.mark.parametrize("population", [1, 4])
def test_an_accepted_image_of_every_class_aimed_at_evolves(defense, population):
    attack = Evolutionary(population=population, generations=400, rate=0.5, strength=5.0)
    out = attack.run(target(defense), X, NONE, INF, 0)
    assert not all(fooled(defense, X)) and all(fooled(defense, out))
    assert out.amin() >= 0 and out.amax() <= 1


def test_every_member_of_every_generation_costs_a_pass_until_one_is_accepted():
    attack, attacked = Evolutionary(population=3, generations=7), target(Closed())
    attack.run(attacked, X, NONE, INF, 0)
    assert attacked.forwards.tolist() == [24] * 12 and not attacked.backwards.any()
    assert attack.passes() == (24, 0)
    attacked, done = target(Bands()), CENTRES[AIMS].view(12, 1, 1, 1).expand(12, 1, 2, 2)
    assert torch.equal(attack.run(attacked, done, NONE, INF, 0), done)
    assert attacked.forwards.tolist() == [3] * 12
    with pytest.raises(BudgetSpent):
        attack.run(target(Closed(), max_passes=23), X, NONE, INF, 0)


def test_an_input_depends_on_no_other_and_on_the_seed():
    attack, whole = Evolutionary(population=2, generations=60, rate=0.5, strength=5.0), target(Bands())
    out = attack.run(whole, X, NONE, INF, 3)
    assert whole.forwards.unique().numel() > 2  # they leave one after the other
    for rows in ([0], [7, 2], [11, 1, 3, 4, 5, 8, 9, 10, 6]):
        part = target(Bands(), AIMS[rows])
        assert torch.equal(attack.run(part, X[rows], NONE[rows], INF, 3), out[rows])
        assert torch.equal(part.forwards, whole.forwards[rows])
    assert not torch.equal(attack.run(target(Bands()), X, NONE, INF, 4), out)


class Doubted(Bands):
    """Randomized: what its scores once said has to be said again."""

    randomized = True

    def verdict(self, x: Tensor) -> Verdict:
        return Verdict(torch.zeros(len(x), dtype=torch.long), torch.ones(len(x), dtype=torch.bool))


def test_what_its_scores_claim_a_randomized_defense_has_to_confirm():
    attacked = target(Doubted())
    Evolutionary(generations=200, rate=0.5, strength=5.0).run(attacked, X, NONE, INF, 0)
    assert (attacked.forwards > 201).any()


@given(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4), st.integers(0, 2), st.booleans())
def test_fitness_is_positive_exactly_where_the_image_is_accepted_as_its_aim(values, aim, rejects):
    scores = torch.tensor([values])
    logits = append_reject_score(scores[:, :3], scores[:, 3]) if rejects else scores[:, :3]
    others = [v for c, v in enumerate(values[:3]) if c != aim]
    taken = values[aim] > max(others) and not (rejects and values[3] > 0)
    value = float(fitness(logits[None], torch.tensor([aim]), 3))
    assert (value > 0) == taken
    if rejects:  # taken for the class, accepted or not: better than anything that is not
        assert (value > -1) == (values[aim] > max(others))


def test_an_answer_that_is_not_a_number_is_the_least_fit():
    logits = torch.tensor([[[torch.nan, 0.0, 0.0, 0.0], [-9.0, 0.0, 1.0, 9.0]]])
    assert fitness(logits, torch.tensor([0]), 3).argmax(1).tolist() == [1]


@pytest.mark.parametrize("rate", [0.5, 0.01])
def test_a_mutation_moves_a_share_of_the_pixels_by_the_polynomial_law(rate):
    """Density ∝ (1 − |δ|)^η: P(|δ| > t) = (1 − t)^(η+1) and E|δ| = 1/(η + 2), both signs alike."""
    eta, parent = 15.0, torch.full((400_000,), 0.5)
    child = mutated(parent, torch.rand(parent.shape, generator=torch.Generator().manual_seed(0)), rate, eta)
    moved = child != parent
    assert moved.float().mean().item() == pytest.approx(rate, rel=0.05)
    size = (child - parent)[moved]
    assert size.abs().mean().item() == pytest.approx(1 / (eta + 2), rel=0.05)
    assert (size.abs() > 0.1).float().mean().item() == pytest.approx(0.9 ** (eta + 1), rel=0.1)
    assert (size > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_a_mutation_stops_at_the_edge_of_the_box():
    edges, draws = torch.tensor([0.0, 1.0]).repeat(500), torch.rand(1000, generator=torch.Generator().manual_seed(0))
    child = mutated(edges, draws, 1.0, 1.0)
    assert child.amin() == 0 and child.amax() == 1 and 0.4 < (child == edges).float().mean() < 0.6


def test_it_aims_at_every_class_of_noise_and_knows_scores_alone():
    attack = Evolutionary()
    assert attack.norms == ("fooling",) and attack.norm == "fooling" and attack.aims == "every"
    assert attack.knowledge == "score"
    with pytest.raises(ValueError, match="aim"):
        attack.run(target(Bands(), None), X, NONE, INF, 0)
    assert len(attack.run(target(Bands(), AIMS[:0]), X[:0], NONE[:0], INF, 0)) == 0
