"""Losses on tables small enough to check by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.losses import (
    SHARPNESS,
    accepted_and_wrong,
    boundary,
    cross_entropy,
    dlr,
    largest_other,
    likeliest_wrong,
    margin,
    named_loss,
    selective,
    selective_margin,
    wrong_first,
)

# three classes and a reject score; right, wrong, rejected though right, rejected though wrong
LOGITS = torch.tensor([[3.0, 1.0, 2.0, 0.0], [1.0, 3.0, 2.0, 2.5], [3.0, 1.0, 2.0, 4.0], [1.0, 3.0, 2.0, 3.5]])
Y = torch.zeros(4, dtype=torch.long)


def test_largest_other_leaves_out_the_true_class_and_the_reject_score():
    assert largest_other(LOGITS, Y, 3).tolist() == [2, 3, 2, 3]
    assert largest_other(LOGITS, torch.tensor([2, 1, 0, 1]), 3).tolist() == [3, 2, 2, 2]


def test_margins_by_hand():
    assert margin(LOGITS, Y, 3).tolist() == [-1, 2, -1, 2]
    assert margin(LOGITS[:, :3], Y, 3).tolist() == [-1, 2, -1, 2]
    assert selective_margin(LOGITS, Y, 3).tolist() == [-1, 0.5, -2, -0.5]
    assert selective_margin(LOGITS[:, :3], Y, 3).tolist() == [-1, 2, -1, 2]
    assert selective(LOGITS, Y, 3).tolist() == [-1, 0.5, -1, -0.5]  # the wrong ones: minus the reject excess
    assert selective(LOGITS[:, :3], Y, 3).tolist() == [-1, 2, -1, 2]


def test_margins_towards_a_class_by_hand():
    aims = torch.tensor([2, 2, 1, 1])
    assert margin(LOGITS, Y, 3, aims).tolist() == [-1, -1, -2, 1]
    assert selective_margin(LOGITS, Y, 3, aims).tolist() == [-1, -1, -3, -0.5]
    assert selective(LOGITS, Y, 3, aims).tolist() == [-1, -1, -2, -0.5]


def test_cross_entropy_by_hand():
    """Of two classes it is the gap; of three with logits 0, a, b the log-odds at temperature spread / SHARPNESS."""
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    assert cross_entropy(logits, torch.tensor([0, 1]), 2).tolist() == pytest.approx([math.log(3), 0])
    assert cross_entropy(torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([0]), 2).item() == pytest.approx(2)
    temperature = (4 / 3) / SHARPNESS  # 3, 1 and −1 lie 2, 0 and 2 from their mean
    expected = temperature * math.log(math.exp(-2 / temperature) + math.exp(-4 / temperature))
    assert cross_entropy(torch.tensor([[3.0, 1.0, -1.0]]), torch.tensor([0]), 3).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [cross_entropy, margin, selective, selective_margin, dlr])
@pytest.mark.parametrize("scale", [1e-6, 0.01, 10.0, 1e4, 1e8])
def test_a_loss_points_the_same_way_at_any_scale_of_the_logits(loss, scale):
    random = torch.Generator().manual_seed(3)
    logits = torch.randn(20, 5, generator=random) * 10
    y = logits.argmax(1)

    def direction(factor: float) -> torch.Tensor:
        z = logits.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(factor * z, y, 5).sum(), z)
        return torch.nn.functional.normalize(gradient)

    assert torch.allclose(direction(scale), direction(1.0), atol=1e-5)
    assert (direction(scale).norm(dim=1) > 0.99).all(), "however confident it is"


@pytest.mark.parametrize("loss", [cross_entropy, margin, selective, selective_margin, dlr])
def test_a_loss_leaves_out_what_is_masked_by_minus_infinity(loss):
    """As if the class were not there: the gradient of the others is finite, and its own is zero."""
    logits = torch.tensor([[1.0, 4.0, -1.0, -torch.inf, 2.0, 0.0]], requires_grad=True)
    values = loss(logits, torch.tensor([1]), 6)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert values.isfinite().all() and gradient.isfinite().all()
    assert gradient[0, 3] == 0 and gradient[0, 1] < 0 < gradient[0, 4]
    few = torch.tensor([[1.0, 4.0, -torch.inf, -torch.inf]], requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(few, torch.tensor([1]), 4).sum(), few)
    assert gradient.isfinite().all() and gradient[0, 1] < 0 < gradient[0, 0]


def test_accepted_and_wrong_by_hand():
    assert accepted_and_wrong(LOGITS, Y, 3).tolist() == [False, True, False, False]
    assert accepted_and_wrong(LOGITS[:, :3], Y, 3).tolist() == [False, True, False, True]


@pytest.mark.parametrize("column", range(4))
def test_infinity_is_a_value_and_nan_is_no_answer(column):
    """Classes 0…2 with the label 0, and the reject score."""
    for value, beaten in ((math.nan, False), (math.inf, column in (1, 2)), (-math.inf, True)):
        logits = torch.tensor([[1.0, 3.0, 2.5, 2.0]])
        logits[0, column] = value
        assert accepted_and_wrong(logits, Y[:1], 3).item() == beaten


def test_auto_sees_rejection():
    for targeted in (False, True):
        assert named_loss("auto", rejects=True, targeted=targeted) is selective
        assert named_loss("margin", rejects=True, targeted=targeted) is margin
    assert named_loss("auto", rejects=False, targeted=False) is cross_entropy
    assert named_loss("auto", rejects=False, targeted=True) is margin


SCORES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4)


@pytest.mark.parametrize("loss", [selective, selective_margin])
@given(row=SCORES, label=st.integers(0, 2), rejecting=st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_selective_loss_is_positive_exactly_where_accepted_and_wrong(loss, row, label, rejecting):
    """Where no two outputs tie: a tie has no largest output, and argmax decides by position."""
    logits = torch.tensor([row if rejecting else row[:3]])
    if len(set(logits[0].tolist())) < logits.shape[1]:
        return
    y = torch.tensor([label])
    answer = logits.argmax(1)
    verdict = Verdict(labels=logits[:, :3].argmax(1), rejected=answer == 3)
    positive = loss(logits, y, 3) > 0
    assert torch.equal(positive, verdict.wrong(y))
    assert torch.equal(positive, accepted_and_wrong(logits, y, 3))
    for aim in {0, 1, 2} - {label}:  # towards a class: exactly where the answer is that class
        assert torch.equal(loss(logits, y, 3, torch.tensor([aim])) > 0, answer == aim)


def test_verdict_is_wrong_where_accepted_and_not_the_label():
    verdict = Verdict(labels=torch.tensor([0, 1, 0, 1]), rejected=torch.tensor([False, False, True, True]))
    assert verdict.wrong(Y).tolist() == [False, True, False, False]


def test_the_ratio_of_logit_differences_by_hand():
    logits = torch.tensor([[4.0, 3.0, 1.0, 0.0], [1.0, 4.0, 3.0, 0.0]])
    y = torch.zeros(2, dtype=torch.long)
    assert dlr(logits, y, 4).tolist() == pytest.approx([-1 / 3, 1.0])
    aims = torch.tensor([2, 3])
    assert dlr(logits, y, 4, aims).tolist() == pytest.approx([-3 / 3.5, -1 / 3.5])
    rejecting = torch.cat([logits, torch.full((2, 1), 9.0)], dim=1)  # rejection is not seen
    assert torch.equal(dlr(rejecting, y, 4), dlr(logits, y, 4))


outputs = st.lists(st.lists(st.floats(-50, 50, width=32), min_size=6, max_size=6), min_size=2, max_size=6)


@given(outputs, st.floats(0.1, 10), st.floats(-10, 10))
def test_neither_scale_nor_offset_of_the_logits_changes_the_ratio(rows, scale, offset):
    logits, y = torch.tensor(rows).double(), torch.zeros(len(rows), dtype=torch.long)
    aims = torch.full((len(rows),), 3)
    for towards in (None, aims):
        apart = logits.topk(3, dim=1).values
        clear = apart[:, 0] - apart[:, 2] > 1e-3
        before, after = dlr(logits, y, 6, towards), dlr(scale * logits + offset, y, 6, towards)
        assert torch.allclose(before[clear], after[clear], rtol=1e-4, atol=1e-6)


@given(outputs)
def test_wrong_first_is_positive_where_accepted_and_wrong_and_never_falls_back(rows):
    logits, y = torch.tensor(rows), torch.zeros(len(rows), dtype=torch.long)
    value = wrong_first(margin)(logits, y, 5, None)
    wrong = logits[:, :5].argmax(1) != y
    assert torch.equal(value > 0, wrong & (logits[:, 5] < logits[:, :5].amax(1)))
    assert (value[wrong] > -1 - 1e-9).all() and (value[~wrong] < -1 + 1e-9).all()


@given(outputs)
def test_some_boundary_is_crossed_exactly_where_the_answer_is_accepted_and_wrong(rows):
    logits, y = torch.tensor(rows), torch.zeros(len(rows), dtype=torch.long)
    aims = likeliest_wrong(logits, y, 5)
    assert (aims != 0).all() and torch.equal(aims.sort(1).values, torch.arange(1, 5).expand(len(rows), -1))
    ordered = logits.gather(1, aims)
    assert (ordered[:, :-1] >= ordered[:, 1:]).all()
    for classes, seen in ((5, logits), (5, logits[:, :5])):
        crossed = (boundary(seen, y, classes, aims) > 0).any(1)
        top = seen.topk(2, dim=1).values
        clear = top[:, 0] > top[:, 1]
        assert torch.equal(crossed[clear], accepted_and_wrong(seen, y, classes)[clear])
