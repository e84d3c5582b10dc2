"""The harness judges for itself: what breaks the rules never counts, and rules have edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from manifold_bench.attacks.contract import Verdict
from manifold_bench.bench.records.schema import protocol
from manifold_bench.bench.running.judge import Inputs, Judge, verdict, with_checks
from manifold_bench.defenses.base import Defense, DefenseSpec

SPEC = DefenseSpec(shape=(1, 2, 2), num_classes=2)


class Brightness(Defense):
    """Class 1 where the mean exceeds .5; rejects where it exceeds .8."""

    def __init__(self) -> None:
        super().__init__(SPEC)

    @property
    def rejects(self) -> bool:
        return True

    def verdict(self, x: Tensor) -> Verdict:
        mean = x.mean((1, 2, 3))
        return Verdict((mean > 0.5).long(), mean > 0.8, mean - 0.8)


def flat(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def judged(
    x: Tensor,
    adversarial: Tensor,
    eps: float = 0.3,
    norm: str = "linf",
    y: Tensor | None = None,
    aims: Tensor | None = None,
):
    defense = Brightness()
    y = torch.zeros(len(x), dtype=torch.long) if y is None else y
    aims = torch.full_like(y, -1) if aims is None else aims
    inputs = Inputs(x, y, aims, torch.arange(len(x)))
    return Judge(defense, norm, draws=1, seed=0).judge(inputs, verdict(defense, x, y, 1, 0), adversarial, eps)


def test_success_is_valid_accepted_and_wrong():
    result = judged(flat(0.4, 0.4, 0.6), flat(0.6, 0.45, 0.85))
    assert result.success.tolist() == [True, False, False]
    assert result.labels.tolist() == [1, 0, 1] and result.rejected.tolist() == [False, False, True]
    assert result.valid.all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.1, -0.1, 0.95])
def test_an_output_that_breaks_the_rules_is_no_success_and_the_clean_answer_is_stored(bad):
    x = flat(0.4, 0.4, 0.85)
    adversarial = flat(0.6, 0.6, 0.6)
    adversarial[1, 0, 0, 0] = adversarial[2, 0, 0, 0] = bad
    result = judged(x, adversarial)
    assert result.valid.tolist() == [True, False, bad == 0.95]
    assert result.success.tolist() == [True, False, bad == 0.95]
    if bad != 0.95:
        assert result.labels.tolist() == [1, 0, 1] and result.rejected.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("norm", "eps", "step", "valid"),
    [
        ("linf", 0.25, 0.25, True),
        ("linf", 0.25, 0.25 + 1e-6, True),
        ("linf", 0.25, 0.25 + 3e-6, False),
        ("l2", 0.5, 0.25, True),  # four pixels: ‖δ‖₂ is twice the step
        ("l2", 0.5, 0.25 + 4e-6, True),
        ("l2", 0.5, 0.25 + 2e-5, False),
        ("l1", 1.0, 0.25, True),
        ("l1", 0.99, 0.25, False),
        ("l0", 4, 0.25, True),
        ("l0", 3, 0.25, False),
        ("unrestricted", math.inf, 0.25, True),
        ("fooling", math.inf, 0.25, True),
    ],
)
def test_tolerance_forgives_rounding_and_nothing_else(norm, eps, step, valid):
    result = judged(flat(0.375), flat(0.375) + step, eps, norm)
    assert result.valid.tolist() == result.success.tolist() == [valid]


def test_a_hair_outside_the_box_is_judged_as_the_image_it_rounds_to():
    result = judged(flat(0.9), flat(1.0 + 5e-7))
    assert result.valid.all()
    assert not judged(flat(0.9), flat(1.0 + 3e-6)).valid.any()


@pytest.mark.parametrize("shape", [(2, 1, 2, 2), (3, 1, 2, 3), (3, 2, 2), (3, 2, 2, 2)])
def test_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match="shape"):
        judged(flat(0.1, 0.2, 0.3), torch.zeros(shape))


def test_distances_are_measured_not_believed():
    adversarial = flat(0.4, 0.4)
    adversarial[0, 0, 0] = torch.tensor([0.7, 0.0])
    adversarial[1, 0, 0, 0] = math.nan
    result = judged(flat(0.4, 0.4), adversarial)
    assert result.linf[0].item() == pytest.approx(0.4) and result.l2[0].item() == pytest.approx(0.5)
    assert result.l0[0].item() == 2
    assert result.linf[1].isinf() and result.l2[1].isinf()


def test_the_defense_answers_in_eval_mode_and_afresh():
    class Moody(Brightness):
        def verdict(self, x: Tensor) -> Verdict:
            labels = torch.full((len(x),), int(self.training))
            return Verdict(labels, torch.zeros(len(x), dtype=torch.bool))

    defense = Moody().train()
    assert verdict(defense, flat(0.1, 0.2), torch.zeros(2, dtype=torch.long), 1, 0).labels.tolist() == [0, 0]


def test_an_aim_makes_no_difference_where_there_is_a_label():
    y, aims = torch.tensor([0, 0, 1]), torch.tensor([1, 5, 0])
    result = judged(flat(0.4, 0.4, 0.4), flat(0.6, 0.6, 0.6), y=y, aims=aims)
    assert result.success.tolist() == [True, True, False]


def test_noise_is_a_success_where_it_is_accepted_and_as_the_aim_if_there_is_one():
    y, aims = torch.full((5,), -1), torch.tensor([-1, -1, 0, 1, 1])
    noise, found = flat(0.2, 0.2, 0.2, 0.2, 0.2), flat(0.3, 0.9, 0.3, 0.3, 0.7)
    for eps, norm in ((math.inf, "fooling"), (math.inf, "unrestricted")):
        assert judged(noise, found, eps, norm, y, aims).success.tolist() == [True, False, True, False, True]
    assert judged(noise, found, math.inf, "fooling", y).success.tolist() == [True, False, True, True, True]
    found[0] = math.nan
    assert not judged(noise, found, math.inf, "fooling", y, aims).success[0]


def test_the_score_is_that_of_the_answer_that_counts():
    adversarial = flat(0.6, 0.9, 0.6)
    adversarial[2, 0, 0, 0] = math.nan
    result = judged(flat(0.5, 0.7, 0.3), adversarial)
    assert result.scores.tolist() == pytest.approx([-0.2, 0.1, 0.3 - 0.8], abs=1e-6)
    assert result.scores.dtype == torch.float64


def test_labels_are_exact_and_scores_are_nan_where_the_defense_does_not_say():
    class Many(Brightness):
        def __init__(self) -> None:
            Defense.__init__(self, DefenseSpec(shape=(1, 2, 2), num_classes=2**24 + 8))

        def verdict(self, x: Tensor) -> Verdict:
            return Verdict(torch.arange(len(x)) + 2**24, torch.zeros(len(x), dtype=torch.bool))

    answer = verdict(Many(), flat(*[0.5] * 8), torch.zeros(8, dtype=torch.long), 1, 0)
    assert answer.labels.tolist() == list(range(2**24, 2**24 + 8)) and answer.labels.dtype == torch.int64
    assert answer.scores.isnan().all() and answer.scores.shape == (8,)


@pytest.mark.parametrize("scores", [torch.zeros(4, 1), torch.zeros(3)])
def test_scores_of_another_shape_are_an_error(scores):
    class Odd(Brightness):
        def verdict(self, x: Tensor) -> Verdict:
            return Verdict(torch.zeros(8, dtype=torch.long), torch.zeros(8, dtype=torch.bool), scores)

    with pytest.raises(ValueError, match=r"Odd\.verdict: scores"):
        verdict(Odd(), flat(*[0.5] * 8), torch.zeros(8, dtype=torch.long), 1, 0)


class Dice(Brightness):
    """Randomized: right, wrong or rejecting, by the throw."""

    randomized = True
    throws: int = 0

    def verdict(self, x: Tensor) -> Verdict:
        self.throws += 1
        throw = torch.randint(0, 10, (len(x),))
        return Verdict((throw == 9).long(), throw == 8)


def test_the_worst_of_n_answers_counts():
    x = torch.rand(200, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(200, dtype=torch.long)
    shares = []
    for draws in (1, 5, 40):
        defense = Dice()
        answer = verdict(defense, x, y, draws, 3)
        assert defense.throws == draws
        wrong = answer.wrong(y)
        shares.append(float(wrong.float().mean()))
        assert not (wrong & answer.rejected).any()
    assert shares[0] == pytest.approx(0.1, abs=0.06)
    assert shares[1] == pytest.approx(1 - 0.9**5, abs=0.1)
    assert shares[2] > 0.95


def test_wrong_is_worse_than_rejected_is_worse_than_right():
    class Script(Brightness):
        randomized = True

        def __init__(self, answers: list[tuple[int, bool]]) -> None:
            super().__init__()
            self.answers = list(answers)

        def verdict(self, x: Tensor) -> Verdict:
            label, rejected = self.answers.pop(0)
            score = torch.full((len(x),), float(2 * label + rejected))
            return Verdict(torch.full((len(x),), label), torch.full((len(x),), rejected), score)

    right, rejected, wrong = (0, False), (1, True), (1, False)
    for answers in ([right, rejected, wrong], [wrong, rejected, right], [rejected, wrong, rejected]):
        answer = verdict(Script(answers), flat(0.1), torch.tensor([0]), 3, 0)
        assert answer.labels.item() == 1 and not answer.rejected.item() and answer.scores.item() == 2
    for answers in ([right, rejected, right], [rejected, right, right]):
        answer = verdict(Script(answers), flat(0.1), torch.tensor([0]), 3, 0)
        assert answer.rejected.item() and answer.scores.item() == 3
    assert not verdict(Script([right] * 3), flat(0.1), torch.tensor([0]), 3, 0).wrong(torch.tensor([0])).item()


def test_of_noise_the_answer_that_is_the_aim_is_the_worst():
    class Script(Brightness):
        randomized = True

        def __init__(self) -> None:
            super().__init__()
            self.labels = [0, 1, 0]

        def verdict(self, x: Tensor) -> Verdict:
            return Verdict(torch.full((len(x),), self.labels.pop(0)), torch.zeros(len(x), dtype=torch.bool))

    x, y = flat(0.1, 0.1, 0.1), torch.full((3,), -1)
    assert verdict(Script(), x, y, 3, 0, torch.tensor([0, 1, -1])).labels.tolist() == [0, 1, 0]


def test_random_answers_are_repeatable_by_seed_and_leave_the_state_alone():
    x, y = torch.rand(50, 1, 2, 2), torch.zeros(50, dtype=torch.long)
    before = torch.get_rng_state()
    first = verdict(Dice(), x, y, 2, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(verdict(Dice(), x, y, 2, 3).labels, first.labels)
    assert not torch.equal(verdict(Dice(), x, y, 2, 4).labels, first.labels)


def test_a_deterministic_defense_answers_once_however_many_draws():
    class Counting(Brightness):
        calls = 0

        def verdict(self, x: Tensor) -> Verdict:
            self.calls += 1
            return super().verdict(x)

    defense = Counting()
    verdict(defense, flat(0.1, 0.9), torch.zeros(2, dtype=torch.long), 9, 0)
    assert defense.calls == 1


def test_the_protocol_has_a_name():
    assert [protocol(False, 5), protocol(True, 1), protocol(True, 5)] == ["deterministic", "single-shot", "worst-of-5"]


def test_a_defense_that_fails_on_the_images_is_named_with_their_shape():
    class Linear784(Defense):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ torch.zeros(784, 10)

    defense = Linear784(DefenseSpec(shape=(1, 8, 8), num_classes=10))
    with pytest.raises(RuntimeError, match=r"^Linear784 fails on images of shape \[N, 1, 8, 8\]: .*784"):
        verdict(defense, torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2]), 1, 0)


class OneAnswer(Tensor):
    """A tensor that names the first class always."""

    def argmax(self, *_: object, **__: object) -> Tensor:
        return torch.zeros(len(self), dtype=torch.long)


class Subclassed(Defense):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[0.0, 1.0]]).expand(len(x), -1).as_subclass(OneAnswer)


def test_an_argmax_of_the_outputs_own_is_not_used():
    assert verdict(with_checks(Subclassed(SPEC)), flat(0.5), torch.tensor([0]), 1, 0).labels.tolist() == [1]
