"""Outputs that say exactly what a defense decided."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manifold_bench.defenses.base import Defense, DefenseSpec, append_reject_score

LARGE = 2.0**127
LOGIT = st.one_of(st.floats(-LARGE, LARGE, width=32), st.sampled_from([0.0, -0.0, 1e-45, LARGE, -LARGE, 1e30]))
EXCESS = st.one_of(
    st.floats(-LARGE, LARGE, width=32), st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-20, torch.inf, -torch.inf])
)


@given(rows=st.lists(st.tuples(LOGIT, LOGIT, LOGIT, EXCESS), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_the_reject_score_is_largest_exactly_where_the_excess_is_positive(rows):
    table = torch.tensor(rows, dtype=torch.float32)
    logits, excess = table[:, :3], table[:, 3]
    outputs = append_reject_score(logits, excess)
    assert torch.equal(outputs[:, :3], logits)
    assert torch.equal(outputs.argmax(1) == 3, excess > 0)
    top, score = logits.amax(1), outputs[:, 3]
    assert torch.equal(score > top, excess > 0) and torch.equal(score < top, excess <= 0)  # never a tie


def test_an_excess_that_is_not_a_number_rejects():
    assert append_reject_score(torch.zeros(1, 2), torch.tensor([torch.nan])).argmax(1).item() == 2


def test_gradients_reach_logits_and_detector():
    logits = torch.tensor([[1.0, 3.0], [1.0, 3.0]], requires_grad=True)
    excess = torch.tensor([0.5, -0.5], requires_grad=True)
    score = append_reject_score(logits, excess)[:, 2]
    assert score.tolist() == [3.5, 2.5]
    score.sum().backward()
    assert logits.grad is not None and logits.grad.tolist() == [[0, 1], [0, 1]]
    assert excess.grad is not None and excess.grad.tolist() == [1, 1]


class Table(Defense):
    """Answers the pixels themselves: images [N,3,1,1] → logits [N,3], the last one a reject score."""

    @property
    def rejects(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_verdict_has_the_best_class_also_where_it_rejects():
    defense = Table(DefenseSpec(shape=(3, 1, 1), num_classes=2))
    logits = torch.tensor([[0.3, 0.1, 0.2], [0.1, 0.3, 0.2], [0.1, 0.2, 0.3], [0.2, 0.1, 0.3]])
    verdict = defense.verdict(logits.view(4, 3, 1, 1))
    assert verdict.labels.tolist() == [0, 1, 1, 0]
    assert verdict.rejected.tolist() == [False, False, True, True]
    assert verdict.wrong(torch.tensor([0, 0, 0, 0])).tolist() == [False, True, False, False]


def test_a_defense_without_rejection_never_rejects():
    class Plain(Defense):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    verdict = Plain(DefenseSpec(shape=(3, 1, 1), num_classes=3)).verdict(torch.rand(5, 3, 1, 1))
    assert not verdict.rejected.any()


def test_gradients_are_those_of_the_sum_where_rounding_would_hide_the_excess():
    logits = torch.tensor([[1e6, 3e6], [1e6, 3e6]], requires_grad=True)
    excess = torch.tensor([1e-3, -1e-3], requires_grad=True)
    outputs = append_reject_score(logits, excess)
    assert outputs.argmax(1).tolist() == [2, 1]
    outputs[:, 2].sum().backward()
    assert logits.grad.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert excess.grad.tolist() == [1.0, 1.0]
