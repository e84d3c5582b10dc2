"""The ladder of ε: what is attacked at each size and what is found, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
from closed_form import distances
from one_job import BEATEN_BEFORE, LADDER, by_eps, ran


@pytest.mark.parametrize("attack", ["closed_form:Step", "fgsm", "pgd"])
def test_success_at_each_strength_is_the_closed_form(tmp_path, attack):
    _, rows = ran(tmp_path, {"name": attack, "eps": LADDER})
    assert (rows["status"] == "ok").all() and rows["valid"].all()
    distance = distances("linf")
    assert (distance > LADDER[0]).sum() > 3 and (distance < LADDER[-1]).sum() > 3
    for eps, cell in by_eps(rows).items():
        assert cell["success"].tolist() == (distance < eps).tolist()
        assert (cell["linf"] <= eps + 1e-6).all()


def test_the_ladder_is_climbed_by_survivors_alone_and_the_beaten_stay_beaten(tmp_path):
    _, rows = ran(tmp_path, {"name": "closed_form:Step", "eps": LADDER})
    distance = distances("linf")
    survivors = [int((distance >= lower).sum()) for lower in [1e-9, *LADDER]]
    assert [(eps, n) for eps, n in zip(LADDER, survivors, strict=False) if n] == tiny.SEEN
    cells = by_eps(rows)
    for lower, eps in zip([0.0, *LADDER], LADDER, strict=False):
        assert (
            cells[eps]["forwards"].tolist()
            == cells[eps]["backwards"].tolist()
            == (distance >= max(lower, 1e-9)).tolist()
        )
    won = np.stack([cells[eps]["success"] for eps in LADDER])
    assert (won[1:] >= won[:-1]).all()
    for eps in LADDER:  # the row of one that was beaten before shows how
        first = np.array([next((e for e in LADDER if d < e), math.nan) for d in distance])
        earlier = cells[eps]["success"] & (distance > 0) & (first < eps)
        assert np.allclose(cells[eps]["linf"][earlier], first[earlier], atol=1e-6)


def test_an_attack_that_does_worse_with_more_loses_nothing(tmp_path):
    _, rows = ran(tmp_path, {"name": "closed_form:Backwards", "eps": [0.08, 0.16], "smallest": 0.08})
    small, large = by_eps(rows).values()
    assert small["success"].sum() > len(BEATEN_BEFORE) and small["success"].tolist() == large["success"].tolist()


def test_distance_is_zero_where_wrong_already_and_infinite_where_never_beaten(tmp_path):
    clean, rows = ran(tmp_path, {"name": "closed_form:Step", "eps": LADDER})
    assert clean["distance"].tolist() == [0 if i in BEATEN_BEFORE else math.inf for i in range(24)]
    assert clean["success"].tolist() == [i in BEATEN_BEFORE for i in range(24)]
    known = [0 if d == 0 else next((e for e in LADDER if d < e), math.inf) for d in distances("linf")]
    for cell in by_eps(rows).values():
        assert cell["distance"].tolist() == pytest.approx(known, abs=1e-6)
        wrong = cell[cell["sample"].isin(BEATEN_BEFORE)]
        assert wrong["success"].all() and (wrong["linf"] == 0).all() and (wrong["forwards"] == 0).all()


def test_one_run_of_a_minimal_attack_serves_every_strength(tmp_path):
    ladder = [0.05, 0.1, 0.2, 0.4]
    _, rows = ran(tmp_path, {"name": "closed_form:Exact", "norm": "l2", "eps": ladder})
    assert [(math.inf, 24 - len(BEATEN_BEFORE))] == tiny.SEEN
    distance = distances("l2")
    cells = by_eps(rows)
    for eps, cell in cells.items():
        assert cell["distance"].tolist() == pytest.approx(distance.tolist(), rel=2e-4)
        assert cell["success"].tolist() == (distance * 1.0001 <= eps).tolist()
        assert np.allclose(cell["l2"], np.where(cell["success"], distance, 0), rtol=2e-4)
        assert (cell["forwards"] == np.where((eps == ladder[0]) & (distance > 0), 7, 0)).all()
        assert (cell["backwards"] == np.where((eps == ladder[0]) & (distance > 0), 3, 0)).all()
    assert 4 < cells[ladder[0]]["success"].sum() < cells[ladder[-1]]["success"].sum()


def test_a_minimal_attack_that_fails_is_infinitely_far_and_invalid(tmp_path):
    _, rows = ran(tmp_path, {"name": "closed_form:Exact", "norm": "l2", "eps": [0.1, 2], "fails": True})
    tried = ~rows["sample"].isin(BEATEN_BEFORE)
    assert not rows["success"][tried].any() and not rows["valid"][tried].any()
    assert np.isinf(rows["distance"][tried]).all()
    assert rows["success"][~tried].all() and rows["valid"][~tried].all() and (rows["distance"][~tried] == 0).all()
    assert (rows["adv_label"][tried] == rows["label"][tried]).all()  # the clean answer is stored


def test_deepfool_finds_the_closed_form(tmp_path):
    _, rows = ran(tmp_path, {"name": "art:DeepFool", "norm": "l2", "eps": [0.4], "epsilon": 0.02})
    assert rows["distance"].tolist() == pytest.approx(distances("l2").tolist(), rel=0.03, abs=1e-4)


def test_without_a_ladder_every_strength_attacks_everything_anew(tmp_path):
    _, rows, once = ran(
        tmp_path,
        {"name": "closed_form:Step", "eps": LADDER, "ladder": False},
        {"name": "closed_form:Backwards", "eps": [0.08, 0.16], "smallest": 0.08, "ladder": False},
    )
    assert [*((eps, 24) for eps in LADDER), (0.08, 24)] == tiny.SEEN
    distance = distances("linf")
    # what is wrong already moves further from its label: it stays wrong under every step
    known = [0 if d == 0 else next((e for e in LADDER if d < e), math.inf) for d in distance]
    for eps, cell in by_eps(rows).items():
        assert cell["success"].tolist() == (distance < eps).tolist()
        assert np.allclose(cell["linf"], eps, atol=1e-6) and (cell["forwards"] == 1).all()
        assert cell["distance"].tolist() == pytest.approx(known, abs=1e-6)
    small, large = by_eps(once).values()
    assert small["success"].sum() > len(BEATEN_BEFORE) and not small["success"].equals(large["success"])
    assert large["success"].tolist() == [i in BEATEN_BEFORE for i in range(24)]  # left as they were, wrong as they were
    assert small["distance"].equals(large["distance"])


BUDGETS = {
    "fgsm": {},
    "pgd": {"steps": 10},
    "apgd": {"steps": 10},
    "square": {"queries": 30},
    "tiny:BriefAutoAttack": {},
}


@pytest.mark.parametrize("defense", ["undefended", "gmvae", "magnet"])
def test_the_ladder_finds_all_that_the_cross_product_finds_in_fewer_passes(tmp_path, defense):
    """Weights of the zoo; without a ladder every size attacks every input."""
    attacks = [
        {"name": name, "label": f"{name}-{ladder}", "norm": "linf", "eps": [0.05, 0.1, 0.2, 0.3], "ladder": ladder}
        | settings
        for name, settings in BUDGETS.items()
        for ladder in (True, False)
    ]
    _, *rows = ran(tmp_path, *attacks, dataset="digits", defense=defense, n=24)
    assert all((found["status"] == "ok").all() for found in rows)
    for ladder, crossed in zip(rows[::2], rows[1::2], strict=True):
        assert (ladder["success"] | ~crossed["success"]).all()
        # what was beaten at no smaller ε has been attacked as in the cross product: the very same finding
        first = ~ladder["success"].groupby(ladder["sample"]).shift(fill_value=False)
        assert (ladder["success"] == crossed["success"])[first].all()
        assert ladder["forwards"].sum() < crossed["forwards"].sum()
