"""Thresholds that a stated share of held-out scores exceed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manifold_bench.defenses.calibration import HeldOutScores
from manifold_bench.defenses.training import in_batches

SCORES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50, unique=True)


def kept(scores: list[float]) -> HeldOutScores:
    held_out = HeldOutScores(1)
    held_out.keep(torch.tensor(scores)[:, None])
    return held_out


@given(scores=SCORES, rate=st.floats(0, 0.999))
def test_as_many_scores_exceed_the_threshold_as_the_rate_allows(scores, rate):
    threshold = kept(scores).thresholds([rate])
    above = int((torch.tensor(scores) > threshold).sum())
    assert threshold.item() in torch.tensor(scores).tolist()
    assert above == math.floor(rate * len(scores) + 1e-9)


def test_whole_percents_are_met_exactly():
    scores = torch.randperm(100, generator=torch.Generator().manual_seed(0)).float()
    held_out = kept(scores.tolist())
    assert all((scores > held_out.thresholds([percent / 100])).sum() == percent for percent in range(100))


def test_every_detector_has_its_own():
    held_out = HeldOutScores(2)
    held_out.keep(torch.tensor([[0.0, 40.0], [3.0, 10.0], [1.0, 20.0], [2.0, 30.0]]))
    assert held_out.thresholds([0.25, 0.5]).tolist() == [2.0, 20.0]


def test_nothing_exceeds_the_threshold_before_there_are_scores():
    assert HeldOutScores(2).thresholds([0.1, 0.5]).tolist() == [math.inf, math.inf]


def test_they_are_stored_with_the_weights():
    full, empty = kept([3.0, 1.0, 2.0]), HeldOutScores(1)
    empty.load_state_dict(full.state_dict())
    assert torch.equal(empty.ordered, torch.tensor([[1.0, 2.0, 3.0]]))
    with pytest.raises(RuntimeError, match="size mismatch"):
        HeldOutScores(2).load_state_dict(full.state_dict())


def test_batches_change_nothing():
    x = torch.rand(1203, 1, 2, 2)
    assert torch.equal(in_batches(lambda part: part.flatten(1) * 2, x, torch.device("cpu")), x.flatten(1) * 2)
