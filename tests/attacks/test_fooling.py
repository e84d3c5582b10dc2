"""Eq. 11 on models whose accepted regions are known: found where there is one, never claimed where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.fooling import Fooling, accepted_as
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.defenses.base import append_reject_score

INF = float("inf")
PROTOTYPES = torch.rand(3, 16, generator=torch.Generator().manual_seed(5)).round() * 0.6 + 0.2
NOISE = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(6))
X = NOISE.repeat_interleave(3, 0)
AIMS = torch.arange(3).repeat(4)
NONE = torch.full((12,), -1)


class Balls(nn.Module):
    """Class of the nearest of three prototypes [16], logits −‖x − p_c‖²; accepts within `radius` of the prototype."""

    num_classes = 3
    rejects = True
    randomized = False
    gradient_modes: tuple[str, ...] = ("default",)
    detectors: tuple[str, ...] = ("distance",)

    def __init__(self, radius: float = 0.3, tells: bool = True) -> None:
        super().__init__()
        self.radius = radius
        self.detectors = ("distance",) if tells else ()
        self.classifier: Scores | None = Scores()

    def distances(self, x: Tensor) -> Tensor:
        """[N,1,4,4] → ‖x − p_c‖ [N,3]."""
        return (x.flatten(1)[:, None] - PROTOTYPES).square().sum(2).clamp_min(1e-12).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        distance = self.distances(x)
        return append_reject_score(-distance.square(), distance.amin(1) / self.radius - 1)

    def detection(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), self.distances(x).gather(1, labels[:, None]) / self.radius

    def verdict(self, x: Tensor) -> Verdict:
        logits = self(x)
        return Verdict(logits[:, :3].argmax(1), logits.argmax(1) == 3)


class Scores(nn.Module):
    """The logits of `Balls` without its detector."""

    def forward(self, x: Tensor) -> Tensor:
        return -(x.flatten(1)[:, None] - PROTOTYPES).square().sum(2)


class Unguarded(Balls):
    """Accepts everything, and has no output to reject with."""

    rejects = False

    def __init__(self) -> None:
        super().__init__(tells=False)

    def forward(self, x: Tensor) -> Tensor:
        return Scores()(x)

    def verdict(self, x: Tensor) -> Verdict:
        labels = self(x).argmax(1)
        return Verdict(labels, torch.zeros_like(labels, dtype=torch.bool))


def target(defense: nn.Module, aims: Tensor | None = AIMS, **options: int) -> Target:
    return Target(defense, 12 if aims is None else len(aims), Attacker(aims=aims, **options))  # type: ignore[arg-type]


def fooled(defense: Balls, images: Tensor, aims: Tensor = AIMS) -> list[bool]:
    answer = defense.verdict(images)
    return (~answer.rejected & (answer.labels == aims)).tolist()


@pytest.mark.parametrize("tells", [True, False], ids=["with detectors", "only a reject score"])
@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_noise_becomes_an_accepted_image_of_every_class_aimed_at(power, tells):
    defense = Balls(tells=tells)
    assert not any(fooled(defense, X))
    out = Fooling(steps=50, restarts=2, a=power).run(target(defense), X, NONE, INF, 0)
    assert all(fooled(defense, out))
    assert out.amin() >= 0 and out.amax() <= 1


def test_a_defense_that_never_rejects_falls_too():
    out = Fooling(steps=100).run(target(Unguarded()), X, NONE, INF, 0)
    assert all(fooled(Unguarded(), out))


@pytest.mark.parametrize("tells", [True, False])
def test_where_nothing_is_accepted_every_step_is_spent_and_nothing_claimed(tells):
    class Closed(Balls):
        def forward(self, x: Tensor) -> Tensor:
            return append_reject_score(-self.distances(x).square(), 1 + self.distances(x).amin(1))

    defense, attack = Closed(tells=tells), Fooling(steps=10, restarts=3)
    attacked = target(defense)
    out = attack.run(attacked, X, NONE, INF, 0)
    assert attacked.forwards.tolist() == attacked.backwards.tolist() == [30] * 12
    assert attack.passes() == (30, 30) and Fooling(part="classifier", steps=10, restarts=3).passes() == (10, 10)
    assert out.isfinite().all() and out.amin() >= 0 and out.amax() <= 1


@pytest.mark.parametrize(("a", "b"), [(2, 2), (4, 1)])
def test_the_descent_ends_at_the_minimum_of_the_published_objective(a, b):
    """(‖x − p‖²/s)^a + (‖x − q‖²/t)^b has its minimum on the line from p to q; there the slopes along it cancel."""
    p, q, scales = PROTOTYPES[0], PROTOTYPES[1], (1.0, 2.0)

    class Between(Balls):
        def __init__(self) -> None:
            super().__init__()
            self.detectors = ("encoding", "reconstruction")

        def detection(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            rejected = append_reject_score(torch.zeros(len(x), 3), torch.ones(len(x)))
            squared = self.distances(x).square()
            return rejected, torch.stack([squared[:, 1] / scales[1], squared[:, 0] / scales[0]], dim=1)

    out = Fooling(steps=250, restarts=1, step_size=0.1, a=a, b=b).run(target(Between()), X, NONE, INF, 0).flatten(1)
    length = float((q - p).norm())
    share = torch.linspace(0, 1, 100_001) * length
    objective = (share.square() / scales[0]) ** a + ((length - share).square() / scales[1]) ** b
    minimum = p + (q - p) * share[objective.argmin()] / length
    assert torch.allclose(out, minimum.expand(12, -1), atol=2e-3)


def test_an_image_accepted_as_its_aim_costs_one_pass_and_stays_as_it_is():
    images = PROTOTYPES.view(3, 1, 4, 4)[AIMS]
    attacked = target(Balls())
    assert torch.equal(Fooling().run(attacked, images, NONE, INF, 0), images)
    assert attacked.forwards.tolist() == attacked.backwards.tolist() == [1] * 12
    other = target(Balls(), (AIMS + 1) % 3)
    moved = Fooling().run(other, images, NONE, INF, 0)
    assert other.forwards.min() > 1 and all(fooled(Balls(), moved, (AIMS + 1) % 3))


def test_an_input_depends_on_no_other():
    attack, whole = Fooling(steps=9, restarts=3), target(Balls(0.6))
    out = attack.run(whole, X, NONE, INF, 0)
    assert any(fooled(Balls(0.6), out)) and whole.forwards.unique().numel() > 1  # they leave one after the other
    for rows in ([0], [5, 2], [11, 1, 3, 4, 7, 8, 9, 10, 6]):
        part = target(Balls(0.6), AIMS[rows])
        assert torch.equal(attack.run(part, X[rows], NONE[rows], INF, 0), out[rows])
        assert torch.equal(part.forwards, whole.forwards[rows])


def test_who_knows_the_classifier_alone_climbs_it_to_the_end_and_asks_nobody():
    attack, attacked = Fooling(part="classifier", steps=40), target(Balls())
    out = attack.run(attacked, X, NONE, INF, 0)
    assert torch.equal(Scores()(out).argmax(1), AIMS)
    assert attacked.forwards.tolist() == attacked.backwards.tolist() == [40] * 12
    assert attack.knowledge == "oblivious" and Fooling().knowledge == "white-box"
    plain = Balls()
    plain.classifier = None
    assert "classifier" in (attack.unsuited(plain) or "") and Fooling().unsuited(plain) is None


class Cheap(Balls):
    """Shows an attacker a cheaper self that accepts everything; the deployed one rejects, or doesn't."""

    gradient_modes = ("identity", "unrolled")

    def __init__(self, honest: bool) -> None:
        super().__init__(radius=100.0 if honest else 1e-6)

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        scores = Scores()(x)
        return append_reject_score(scores, -torch.ones(len(x))), x.new_zeros(len(x), 1, 1)


def test_what_a_cheaper_view_claims_the_defense_has_to_confirm():
    attacked = target(Cheap(honest=False))
    Fooling(steps=30, restarts=1).run(attacked, X, NONE, INF, 0)
    assert attacked.backwards.tolist() == [30] * 12
    assert (attacked.forwards >= 30 + 2).all() and (
        attacked.forwards <= 30 + 3
    ).all()  # confirmed at steps 0, 10 and 20
    attacked = target(Cheap(honest=True))
    out = Fooling(steps=100).run(attacked, X, NONE, INF, 0)
    assert all(fooled(Cheap(honest=True), out)) and (attacked.backwards < 100).all()


def test_an_answer_that_is_not_a_number_is_no_success():
    silent = torch.tensor([[torch.nan, torch.nan, torch.nan, torch.nan], [0.0, 1.0, 2.0, -1.0]])
    attacked = target(Balls(), AIMS[:2])
    claimed = accepted_as(torch.tensor([0, 2]), silent, X[:2], attacked.view(), torch.arange(2))
    assert claimed.tolist() == [False, True]


def test_it_aims_at_every_class_of_noise_and_keeps_to_its_budget():
    assert Fooling().norms == ("fooling",) and Fooling().norm == "fooling" and Fooling().aims == "every"
    with pytest.raises(ValueError, match="aim"):
        Fooling().run(target(Balls(), None), X, NONE, INF, 0)
    attack = Fooling(steps=3, restarts=3)
    most = sum(attack.passes())
    attack.run(target(Balls(1e-3), max_passes=most), X, NONE, INF, 0)
    with pytest.raises(BudgetSpent):
        replace(attack, steps=4).run(target(Balls(1e-3), max_passes=most), X, NONE, INF, 0)
    assert len(attack.run(target(Balls(), AIMS[:0]), X[:0], NONE[:0], INF, 0)) == 0
