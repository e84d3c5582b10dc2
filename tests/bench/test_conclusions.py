"""When a claim counts as contradicted, and what the conclusion says."""

from __future__ import annotations

import math

import pytest
from claimed import AT, CLEAN_CELL, STRONG, WEAK, claim
from handmade import REJECT, cell, run
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold_bench.bench.metrics.shares import wilson
from manifold_bench.bench.planning.claims import Budget
from manifold_bench.bench.records.schema import CLEAN
from manifold_bench.bench.report.claims import (
    RULE,
    conclusions,
    contradicted,
)


@pytest.mark.parametrize(
    ("published", "figure", "count", "n", "falls"),
    [
        ((0, 9000), "pairs", 0, 200, False),
        ((0, 9000), "pairs", 1, 200, True),  # 0.09 % at least, where 0.04 % at most was published
        ((0, 9), "pairs", 1, 200, False),  # nine pairs say little
        (0.05, "error", 9, 100, False),
        (0.05, "error", 11, 100, True),
        (0.95, "accuracy", 91, 100, False),
        (0.95, "accuracy", 89, 100, True),
        (0.95, "accuracy", 100, 100, False),
    ],
)
def test_a_claim_falls_where_the_interval_is_on_the_wrong_side(published, figure, count, n, falls):
    assert contradicted(claim(published=published, figure=figure), wilson(count, n)) is falls


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 50), st.integers(1, 50), st.sampled_from(["error", "accuracy"]))
def test_a_claim_never_falls_by_being_confirmed(count, n, figure):
    count = min(count, n)
    assert not contradicted(claim(published=(count, n), figure=figure), wilson(count, n))
    assert not contradicted(claim(published=count / n, figure=figure), wilson(count, n))


CENTRAL = claim(published=0.0, figure="error", text="no attack gets through", strongest=(AT,), central=True)


def test_the_conclusion_tells_the_numbers_it_rests_on():
    text, rule = conclusions(run(CLEAN_CELL, WEAK, STRONG), [CENTRAL, claim()])
    assert rule == RULE and conclusions(CLEAN_CELL, [claim()]) == []
    assert "no attack gets through" in text and "\n" not in text
    assert "Published: 0.00." in text
    assert "accepted and wrong 75.00 [30.06, 95.44], n = 4 (strongest single attack: strong, 75.00" in text
    assert "Median L∞ distance at which an input is beaten: 0.100, n = 4." in text
    assert "Clean rejection rate: 25.00" in text
    assert "**the claim is contradicted: as the paper did it, L∞ ε = 0.1**" in text


def test_the_distance_shown_is_that_of_inputs_which_every_attack_tried():
    few = cell("few", labels=[0, 1], adv=[1, 0], distance=[0.05, 0.05], samples=[0, 1])
    text = conclusions(run(CLEAN_CELL, WEAK, few), [CENTRAL])[0]
    assert "Median L∞ distance at which an input is beaten: 0.050, n = 2." in text


def conclusion(*cells: object) -> str:
    return conclusions(run(*cells), [CENTRAL])[0]


def test_a_claim_holds_only_where_nothing_is_missing():
    right = cell(CLEAN)
    holds = cell("weak", adv=[REJECT, 1, 2, 3])
    assert "the claim is not contradicted by the attacks of this run" in conclusion(right, holds)
    assert "the claim is open" in conclusion(right, holds, cell("strong", status="failed", reason="died"))
    assert "the claim is open" in conclusion(right, cell("strong", status="failed", reason="died"))
    assert "the claim is open" in conclusion(right)
    assert "the claim is not contradicted" in conclusion(right, holds, cell("other", status="skipped", reason="no use"))
    died = cell("strong", status="failed", reason="died")
    assert "the claim is contradicted" in conclusion(cell("weak", adv=[1, 1, 2, 3]), died)


def test_a_claim_falls_by_the_papers_own_attack():
    rows = cell("weak", adv=[1, 1, 2, 3])
    claimed = claim(published=(0, 9000), figure="fooled", attack="weak", strongest=(AT,), central=True)
    (text, _) = conclusions(run(CLEAN_CELL, rows), [claimed])
    assert "1 of 4: 25.00" in text and "**the claim is contradicted: as the paper did it, L∞ ε = 0.1**" in text


def test_fooling_has_a_conclusion_too():
    noise = {"norm": "fooling", "labels": [-1, -1], "clean": [REJECT, REJECT]}
    budget = Budget(norm="fooling", eps=math.inf)
    claimed = claim(
        published=(0, 1000),
        figure="fooled",
        attack="a",
        norm="fooling",
        eps=math.inf,
        strongest=(budget,),
        central=True,
    )
    rows = run(cell(CLEAN), cell("a", **noise), cell("b", **noise, adv=[1, REJECT]))
    text, _ = conclusions(rows, [claimed])
    assert "0 of 2: 0.00" in text and "made accepted and wrong 50.00" in text and "the claim is contradicted" in text
    assert "median" not in text
