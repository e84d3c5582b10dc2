"""Losses on tables small enough to check by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.losses import (
    accepted_and_wrong,
    cross_entropy,
    largest_other,
    margin,
    named_loss,
    selective,
    selective_margin,
)
from attacks.target import Verdict

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
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    assert cross_entropy(logits, torch.tensor([0, 1]), 2).tolist() == pytest.approx([math.log(4), math.log(2)])
    rejecting = torch.tensor([[0.0, 0.0, math.log(2.0)]])
    assert cross_entropy(rejecting, torch.tensor([0]), 2).item() == pytest.approx(math.log(4))


def test_accepted_and_wrong_by_hand():
    assert accepted_and_wrong(LOGITS, Y, 3).tolist() == [False, True, False, False]
    assert accepted_and_wrong(LOGITS[:, :3], Y, 3).tolist() == [False, True, False, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", range(4))
def test_no_success_without_a_finite_answer(bad, column):
    logits = LOGITS[1:2].clone()
    logits[0, column] = bad
    assert not accepted_and_wrong(logits, Y[:1], 3).item()


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
