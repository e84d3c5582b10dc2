"""The figures that claims are about, on records small enough to count."""

from __future__ import annotations

import pytest
from claimed import LADDER
from handmade import REJECT, cell, run

from manifold_bench.bench.metrics.claims import (
    detection_auc,
    fallen,
    fooled,
    largest_drop,
    over_ladder,
    pairs,
    peak_error,
    reclassified_right,
    recovered,
)
from manifold_bench.bench.metrics.shares import MissingCells, wilson
from manifold_bench.bench.records.schema import CLEAN


def test_pairs_counts_what_was_taken_for_its_aim():
    labels, samples = [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]
    aims = [1, 2, 3, 0, 2, 3]
    answers = [1, REJECT, 2, 0, 1, 3]  # as aimed; rejected; wrong but not as aimed; as aimed; right; as aimed
    rows = cell(labels=labels, samples=samples, aims=aims, adv=answers)
    assert pairs(rows) == wilson(3, 6)
    invalid = cell(labels=labels, samples=samples, aims=aims, adv=answers, invalid=[0])
    assert pairs(invalid) == wilson(2, 6)


def test_a_pair_that_is_the_aim_without_an_attack_is_no_pair():
    rows = cell(labels=[0, 0], samples=[0, 0], aims=[1, 2], clean=[1, 1], adv=[1, 2])
    assert pairs(rows) == wilson(1, 1)


def test_pairs_without_aims_are_refused():
    with pytest.raises(MissingCells, match="not targeted"):
        pairs(cell())


def test_fooled_counts_accepted_noise():
    noise = {"norm": "fooling", "labels": [-1] * 4, "clean": [REJECT] * 4}
    assert fooled(cell(**noise, adv=[3, REJECT, 5, REJECT])) == wilson(2, 4)
    aimed = cell(**noise, samples=[0, 0, 1, 1], aims=[3, 4, 3, 4], adv=[3, 3, REJECT, REJECT])
    assert fooled(aimed) == wilson(1, 4)  # the second answer is not what was aimed at
    assert fallen(aimed) == wilson(1, 2)  # of the two images, one


def test_of_several_seeds_any_may_reach_the_aim_of_a_pair():
    one, other = (
        cell("a", labels=[0] * 4, aims=[1, 2] * 2, samples=[0, 0, 1, 1], adv=adv, seed=seed)
        for seed, adv in ((0, [1, 0, 0, 0]), (1, [1, 2, 0, 1]))
    )
    assert pairs(run(one, other))[::3] == (0.5, 4)  # the last was to be a 2
    assert fooled(run(one, other))[::3] == (0.75, 4)
    assert fallen(run(one, other))[::3] == (1, 2)


def test_noise_of_another_seed_is_other_noise():
    one, other = (cell("a", norm="fooling", labels=[-1] * 2, adv=[3, REJECT], seed=seed) for seed in (0, 1))
    for figure in (fooled, fallen):
        assert figure(run(one, other))[::3] == (0.5, 4)


def test_fallen_is_what_attacks_did_and_not_what_was_wrong_before():
    weak = cell("weak", labels=[0, 1, 2, 3], clean=[0, 1, 0, REJECT], adv=[1, 1, 0, REJECT])
    strong = cell("strong", labels=[0, 1, 2, 3], clean=[0, 1, 0, REJECT], adv=[REJECT, 1, 0, 1])
    assert fallen(weak) == wilson(1, 4)
    assert fallen(run(weak, strong)) == wilson(2, 4)


def test_outcomes_over_a_ladder_begin_with_the_clean_inputs():
    curve = over_ladder(LADDER)
    assert curve["eps"].tolist() == [0, 0.1, 0.2, 0.3]
    assert curve["accuracy"].tolist() == [0.75, 0.25, 0, 0.25]
    assert curve["error"].tolist() == [0.25, 0.25, 0.5, 0]
    assert curve["rejection"].tolist() == [0, 0.5, 0.5, 0.75]
    assert (curve[["accuracy", "error", "rejection"]].sum(axis=1) == 1).all()


def test_the_peak_of_the_error_and_the_drop_of_the_rejection():
    assert peak_error(LADDER) == (0.2, wilson(2, 4))
    assert largest_drop(LADDER) == 0
    falling = cell(eps=(0.1, 0.2, 0.3), adv={0.1: [REJECT] * 3 + [0], 0.2: [REJECT] + [0] * 3, 0.3: [REJECT] * 4})
    assert largest_drop(falling) == 0.5


def test_reclassification_is_joined_by_input_and_size():
    labels = [0, 1, 2, 3, 4]
    rejecting = cell("a", labels=labels, adv=[REJECT, REJECT, REJECT, 3, 0])
    answering = cell("a", labels=labels, adv=[0, 1, 0, 3, REJECT], defense="r")
    assert reclassified_right(answering, rejecting) == wilson(2, 3)
    assert recovered(answering, rejecting) == wilson(2, 3)
    still = cell("a", labels=labels, adv=[0, REJECT, 0, 3, REJECT], defense="r")
    assert reclassified_right(still, rejecting) == wilson(1, 2)
    assert recovered(still, rejecting) == wilson(1, 3)


def test_reclassification_of_the_clean_inputs():
    rejecting = cell(CLEAN, labels=[0, 1, 2], clean=[REJECT, REJECT, 2])
    answering = cell(CLEAN, labels=[0, 1, 2], clean=[0, 2, 2], defense="r")
    assert recovered(answering, rejecting) == wilson(1, 2)


def test_reclassification_of_different_images_is_refused():
    rejecting = cell("a", adv=[REJECT] * 4)
    moved = cell("a", defense="r")
    with pytest.raises(MissingCells, match="not shown the same images"):
        recovered(moved.assign(linf=0.09), rejecting)
    with pytest.raises(MissingCells, match="share 3 of 4"):
        recovered(moved.iloc[:3], rejecting)


def test_an_input_of_which_the_defenses_were_shown_different_images_is_left_out():
    labels = [0] * 200
    rejecting, answering = cell("a", labels=labels, adv=[REJECT] * 200), cell("a", labels=labels, defense="r")
    answering.loc[0, "linf"] = 0.09
    assert recovered(answering, rejecting) == wilson(199, 199)


def test_the_area_under_the_curve_counts_pairs_in_which_the_attacked_input_looks_worse():
    """Of the nine pairs (clean, attacked) of {1, 2, 3} and {2, 4, 5} the attacked one is above in 7 and level in 1."""
    rows = cell(labels=(0, 1, 2), clean_scores=(1, 2, 3), adv_scores=(2, 4, 5))
    area, low, high = detection_auc(rows)
    assert area == pytest.approx((7 + 0.5) / 9) and 0 <= low <= area <= high <= 1
    apart, together = (
        detection_auc(cell(clean_scores=(1, 2, 3, 4), adv_scores=s)) for s in ((5, 6, 7, 8), (1, 2, 3, 4))
    )
    assert apart == (1, 1, 1) and together[0] == 0.5
    with pytest.raises(MissingCells, match="scores"):
        detection_auc(cell())


@pytest.mark.parametrize("status", ["failed", "skipped"])
@pytest.mark.parametrize("figure", [pairs, fooled, fallen, peak_error, largest_drop, detection_auc])
def test_no_figure_over_cells_that_are_not_ok(figure, status):
    with pytest.raises(MissingCells):
        figure(cell(status=status, reason="out of memory"))
