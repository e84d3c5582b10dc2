"""Counting passes, whole blocks, and what an attack is handed of a defense."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from manifold_bench.attacks.batching import BLOCK, batch_rows, blockwise, pad_to_block
from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.losses import typical_temperature
from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.attacks.view import CountedModule, View
from manifold_bench.defenses.networks import StridedCNN

X = torch.rand(21, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ALL = torch.arange(21)


class Plain(nn.Module):
    """A small CNN with random weights, its own classifier; notes the batch sizes that reach it."""

    num_classes = 10
    rejects = False
    randomized = False
    gradient_modes: tuple[str, ...] = ("default",)

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.classifier = StridedCNN((1, 8, 8), 10, 4, 16).requires_grad_(False)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.classifier(x)

    def verdict(self, x: Tensor) -> Verdict:
        labels = self(x).argmax(1)
        return Verdict(labels, labels == 9)


def total(logits: Tensor) -> Tensor:
    return logits.square().sum(1)


def test_passes_count_for_the_rows_they_were_made_for():
    target = Target(Plain(), 4)
    view = target.view()
    rows = torch.tensor([1, 3])
    view.answer(X[:2], rows)
    view.ascent(X[:2], total, rows)
    target.verdict(X[:1], rows[:1])
    assert target.forwards.tolist() == [0, 3, 0, 2]
    assert target.backwards.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 21])
def test_padding_repeats_the_last_row_up_to_a_whole_block(n):
    padded = pad_to_block(X[:n])
    assert len(padded) % BLOCK == 0 and len(padded) - n < BLOCK
    assert torch.equal(padded[:n], X[:n])
    assert (padded[n:] == X[n - 1]).all()


@pytest.mark.parametrize(
    ("shape", "rows"), [((1, 8, 8), 256), ((1, 28, 28), 256), ((3, 32, 32), 64), ((3, 64, 64), 16), ((3, 224, 224), 8)]
)
def test_batches_are_whole_blocks_and_hold_no_more_values_than_256_images_of_mnist(shape, rows):
    assert [batch_rows(torch.empty(1, *shape).expand(n, *shape)) for n in (1, 10_000)] == [rows] * 2


def test_padding_never_changes_an_answer():
    defense = Plain()
    view = Target(defense, len(X)).view()
    whole = view.answer(X, ALL)
    _, loss, gradient = view.ascent(X, total, ALL)
    for n in (1, 3, 8, 13, 20):
        assert torch.equal(view.answer(X[:n], ALL[:n]), whole[:n])
        _, part_loss, part_gradient = view.ascent(X[:n], total, ALL[:n])
        assert torch.equal(part_loss, loss[:n]) and torch.equal(part_gradient, gradient[:n])
        assert torch.equal(Target(defense, n).verdict(X[:n], ALL[:n]).labels, whole[:n].argmax(1))
    assert torch.allclose(whole, defense(X), atol=1e-6)
    assert all(size % BLOCK == 0 for size in defense.sizes[:-1])


@pytest.mark.parametrize("batch_size", [1, 5, 8, 16, 256])
def test_blockwise_answers_are_the_same_bits_in_any_batch(batch_size):
    defense = Plain()
    whole = blockwise(defense, X)
    assert whole.shape == (21, 10) and not whole.requires_grad
    assert torch.equal(blockwise(defense, X, batch_size), whole)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(1))
    assert torch.equal(blockwise(defense, X[order], batch_size), whole[order])


def test_verdict_has_one_answer_per_input():
    verdict = Target(Plain(), 5).verdict(X[:5], ALL[:5])
    assert verdict.labels.shape == verdict.rejected.shape == (5,)
    assert verdict.rejected.dtype is torch.bool


def test_gradient_of_an_input_is_its_own():
    view = Target(Plain(), 3).view()
    x = X[:3].clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(total(view.logits(x, None)).sum(), x)
    logits, values, gradient = view.ascent(X[:3], total, ALL[:3])
    assert torch.allclose(gradient, expected)
    assert not logits.requires_grad and not values.requires_grad
    with torch.no_grad():
        assert torch.equal(view.ascent(X[:3], total, ALL[:3])[2], gradient)  # whatever the caller's gradient mode


def test_module_is_the_view_with_its_passes_counted():
    target, rows = Target(Plain(), 6), torch.tensor([1, 2, 3, 5])
    module = CountedModule(target.view(), rows)
    logits = target.view().logits(X[:4], None)
    unit = 2 * typical_temperature(logits, 10)[:, None]
    assert torch.allclose(module(X[:4]) * unit, logits, atol=1e-6)
    assert target.forwards.tolist() == [0, 1, 1, 1, 0, 1]
    x = X[:4].clone().requires_grad_(True)
    module(x).sum().backward()
    assert target.forwards.tolist() == [0, 2, 2, 2, 0, 2] and target.backwards.tolist() == [0, 1, 1, 1, 0, 1]
    assert x.grad is not None
    assert module.num_classes == 10 and not module.rejects
    assert not list(module.parameters())  # nothing another library could train or move


def test_a_module_asked_for_fewer_or_more_inputs_spreads_the_passes_over_its_rows():
    target = Target(Plain(), 6)
    module = CountedModule(target.view(), torch.tensor([0, 1, 2, 3]))
    module(X[:2])
    assert target.forwards.tolist() == [0.5] * 4 + [0, 0]
    x = X[:8].clone().requires_grad_(True)
    module(x).sum().backward()
    assert target.forwards.tolist() == [2.5] * 4 + [0, 0] and target.backwards.tolist() == [2] * 4 + [0, 0]


def limited(passes: int, eps: float) -> Target:
    """A target for two inputs, of which the second one is labelled so that any image beats it."""
    answers = Plain().verdict(X[:2]).labels
    labels = torch.stack([answers[0], (answers[1] + 1) % 10])
    return Target(Plain(), 2, Attacker(max_passes=passes), queries=Queries(X[:2], labels, None, "linf", eps))


def test_an_input_whose_budget_is_spent_costs_and_gains_nothing_more():
    target, one = limited(3, 1.0), torch.tensor([1])
    target.view().ascent(X[1:2], total, one)
    target.view().ascent(X[1:2], total, one)  # the third pass is left, but not the fourth
    assert target.forwards.tolist() == [0, 1] and target.backwards.tolist() == [0, 1]
    assert target.spent.tolist() == [False, True] and target.queries.gradients.tolist() == [0, 0]
    target = limited(1, 1.0)
    target.verdict(X[:1], torch.tensor([0]))
    target.verdict(1 - X[:1], torch.tensor([0]))  # would beat or not: it comes too late
    assert target.queries.distance.isinf().all() and not target.queries.moved.any()


@pytest.mark.parametrize(("eps", "ends"), [(1.0, True), (torch.inf, False)])
def test_an_attack_ends_when_no_input_can_gain_anything(eps, ends):
    """A beaten input gains nothing more where ε bounds the perturbation; a smaller one is searched otherwise."""
    target, zero = limited(2, eps), torch.tensor([0])
    target.verdict(X[1:2], torch.tensor([1]))
    target.verdict(X[:1], zero)
    target.verdict(X[:1], zero)
    with pytest.raises(BudgetSpent, match="2") if ends else nullcontext():
        target.verdict(X[:1], zero)


class Projecting(Plain):
    """Optimises at inference: hands out where it ended, and records the calls."""

    gradient_modes = ("identity", "unrolled")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, bool, int]] = []

    def attack_forward(self, x: Tensor, gradient: str, start: Tensor | None, inner_steps: int) -> tuple[Tensor, Tensor]:
        self.calls.append((gradient, start is not None, inner_steps))
        ended = x.detach().flatten(1)[:, None, :3] if start is None else start + 1
        return self.classifier(x), ended


def test_what_is_exact_and_what_has_to_be_confirmed():
    assert Target(Plain(), 1).view().exact
    assert not Target(Plain(), 1).view("classifier").exact
    assert not Target(Projecting(), 1).view().exact
    stochastic = Plain()
    stochastic.randomized = True
    assert not Target(stochastic, 1).view().exact


def test_an_inner_optimisation_goes_on_where_it_ended_for_the_same_rows():
    defense = Projecting()
    view: View = Target(defense, 4).view(inner_steps=7, warm_start=True)
    rows = torch.arange(4)
    view.answer(X[:4], rows)
    view.answer(X[:2], rows[2:])
    assert defense.calls == [("identity", False, 7), ("identity", True, 7)]
    assert view.memory is not None
    expected = X[:4].flatten(1)[:, None, :3].clone()
    expected[2:] += 1
    assert torch.equal(view.memory, expected)
    view.logits(X[:4], None)  # rows not known: nothing to go on from
    assert defense.calls[-1] == ("identity", False, 7)
    Target(defense, 4).view(gradient="unrolled").answer(X[:4], rows)
    assert defense.calls[-1][0] == "unrolled"


def test_without_a_warm_start_every_inner_optimisation_is_one_of_its_own():
    defense = Projecting()
    view: View = Target(defense, 4).view(inner_steps=7)
    for _ in range(3):
        view.answer(X[:4], torch.arange(4))
    assert defense.calls == [("identity", False, 7)] * 3 and view.memory is None
    for attack in (PGD(steps=2), PGD(steps=2, warm_start=True)):
        defense.calls.clear()
        attack.run(Target(defense, 4), X[:4], defense(X[:4]).argmax(1), 1e-6, 0)
        warm = [started for _, started, _ in defense.calls]
        assert warm == [False, attack.warm_start, attack.warm_start]


def test_parts_and_modes_that_are_not_there_are_refused():
    whole = Plain()
    whole.classifier = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="classifier"):
        Target(whole, 1).view("classifier")
    with pytest.raises(ValueError, match="unrolled"):
        Target(Plain(), 1).view(gradient="unrolled")


def test_every_query_about_one_input_starts_from_its_own_optimisation():
    defense = Projecting()
    target = Target(defense, 3)
    view = target.view(inner_steps=7, warm_start=True)
    rows = torch.tensor([2])
    module = CountedModule(view, rows)
    module(X[2:3])
    module(X[:4])
    assert defense.calls == [("identity", False, 7), ("identity", True, 7)]
    assert target.forwards.tolist() == [0, 0, 5]
