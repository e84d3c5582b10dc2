"""One job: what its records say of broken rules, failures, chance, images, scores and calibration."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from closed_form import Grey
from one_job import BEATEN_BEFORE, DIGITS, LADDER, answers, by_eps, ran

from manifold_bench.bench.datasets.base import image_hashes


@pytest.mark.parametrize("attack", ["InPlace", "OutsideBall", "OutsideBox", "NanPixels"])
def test_what_breaks_the_rules_leaves_the_originals_and_the_clean_answers_as_they_were(tmp_path, attack):
    before = tiny.Digits().test.images.clone()
    clean, rows = ran(
        tmp_path, {"name": f"broken:{attack}", "eps": [0.1]}, dataset="digits", defense="tiny:NearestMean", n=10
    )
    assert not rows["valid"].any() and not rows["success"].any()
    for column in ("label", "clean_label", "clean_rejected", "input_sha256"):
        assert rows[column].tolist() == clean[column].tolist()
    assert rows["adv_label"].tolist() == clean["clean_label"].tolist()
    assert torch.equal(tiny.Digits().test.images, before)


def test_a_failed_job_says_why_in_every_row_and_holds_no_figure(tmp_path):
    _, rows = ran(tmp_path, {"name": "broken:Raises", "eps": [0.1, 0.2]})
    assert len(rows) == 48 and set(rows["status"]) == {"failed"}
    assert set(rows["reason"]) == {"ArithmeticError: out of luck and a second line"}
    assert not rows["success"].any() and not rows["valid"].any() and not rows["forwards"].any()
    log = list((tmp_path / "records" / "failures").glob("*.txt"))
    assert len(log) == 1 and "and a second line" in log[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("attack", [{"name": "pgd", "eps": [0.08]}, {"name": "deepfool", "norm": "l2", "eps": [0.5]}])
def test_a_budget_of_passes_keeps_the_best_points_of_what_was_paid_for(tmp_path, attack):
    """An attack with a budget is the same attack until the budget is spent, and then its best point counts."""
    budgets = [4, 7, 1000]
    found = [ran(tmp_path / str(most), attack | {"steps": 20, "max_passes": most})[1] for most in budgets]
    _, free = ran(tmp_path / "free", attack | {"steps": 20})
    for most, rows in zip(budgets, found, strict=True):
        assert set(rows["status"]) == {"ok"} and rows["valid"].all()
        assert ((rows["forwards"] + rows["backwards"]) <= most).all()
    assert found[-1]["success"].equals(free["success"]) and found[-1]["distance"].equals(free["distance"])
    beaten = [int(rows["success"].sum()) for rows in found]
    assert beaten == sorted(beaten) and len(BEATEN_BEFORE) <= beaten[0] <= beaten[-1]


@pytest.mark.parametrize(("draws", "protocol"), [(1, "single-shot"), (6, "worst-of-6")])
def test_a_randomized_defense_is_judged_by_its_protocol(tmp_path, draws, protocol):
    attack = {"name": "tiny:Slow", "eps": [1e-6]}
    clean, rows = ran(tmp_path, attack, dataset="digits", defense="tiny:Coin", n=40, draws=draws)
    for frame in (clean, rows):
        assert set(frame["protocol"]) == {protocol}
    accuracy = (clean["clean_label"] == clean["label"]).mean()
    # it is right by the throw of a coin: half the time for one answer, hardly ever six times in a row
    assert (0.2 < accuracy < 0.8) if draws == 1 else accuracy < 0.2
    assert clean["forwards"].eq(draws).all()
    assert clean["reason"].str.contains("one draw").eq(draws == 1).all()


def test_a_randomized_defense_answers_alike_for_the_same_seed_and_afresh_for_another(tmp_path):
    attack = {"name": "tiny:Slow", "eps": [0.1]}
    runs = [
        ran(tmp_path / str(i), attack, dataset="digits", defense="tiny:Coin", n=40, seed=seed)[0]
        for i, seed in enumerate((1, 1, 2))
    ]
    assert runs[0]["clean_label"].tolist() == runs[1]["clean_label"].tolist() != runs[2]["clean_label"].tolist()


def test_a_defense_whose_answers_depend_on_the_batch_gets_its_note(tmp_path):
    attack = {"name": "tiny:Slow", "eps": [0.1]}
    clean, _ = ran(tmp_path, attack, dataset="digits", defense="tiny:Jury", n=10)
    assert set(clean["status"]) == {"ok"} and clean["reason"].str.contains("batch").all()
    sound, _ = ran(tmp_path, attack, dataset="digits", defense="tiny:NearestMean", n=10)
    assert sound["reason"].eq("").all()


def test_an_attack_that_changes_the_defense_fails_and_the_next_job_finds_it_whole(tmp_path):
    vandal, after = {"name": "broken:Vandal", "eps": [0.1]}, {"name": "tiny:Slow", "eps": [1e-6]}
    _, broken, sound = ran(tmp_path, vandal, after, dataset="digits", defense="tiny:NearestMean", n=10)
    assert broken["reason"].str.contains("changed the defense").all()
    assert (sound["adv_label"] == sound["clean_label"]).all()


def test_images_are_kept_of_the_first_inputs_and_are_what_was_judged(tmp_path):
    _, rows = ran(tmp_path, {"name": "closed_form:Step", "eps": LADDER})
    cell = by_eps(rows)[LADDER[-1]]
    kept = cell.index[cell["image_original"].notna()]
    assert len(kept) == 8 and cell["image_adversarial"].notna().sum() == 8
    for i in kept:
        original, adversarial = (
            np.frombuffer(cell[name][i], dtype=np.float32) for name in ("image_original", "image_adversarial")
        )
        assert (original == Grey().test.images[i].flatten().numpy()).all()
        assert np.abs(adversarial - original.astype(float)).max() == cell["linf"][i]


def test_scores_are_those_of_the_clean_and_of_the_judged_image(tmp_path):
    attack = {"name": "noise", "norm": "unrestricted", "draws": 1}
    clean, rows, invalid = ran(tmp_path, attack, {"name": "broken:OutsideBox", "eps": [0.1]}, **DIGITS)
    images = tiny.Digits().test.images[clean["sample"].tolist()]
    assert clean["clean_score"].tolist() == pytest.approx(answers(tiny.Wary, images)[2], abs=1e-6)
    assert clean["adv_score"].equals(clean["clean_score"])
    assert rows["clean_score"].equals(clean["clean_score"]) and (rows["adv_score"] != rows["clean_score"]).all()
    assert rows["adv_rejected"].tolist() == (rows["adv_score"] > 0).tolist()
    assert rows["adv_rejected"].any() and not rows["adv_rejected"].all()
    assert invalid["adv_score"].equals(clean["clean_score"])  # nothing was judged, so the clean answer is stored


def test_a_defense_that_does_not_say_how_suspicious_has_no_scores(tmp_path):
    for rows in ran(tmp_path, {"name": "tiny:Slow", "eps": [0.1]}, dataset="digits", defense="tiny:Jury", n=10):
        assert rows["clean_score"].isna().all() and rows["adv_score"].isna().all()


def test_calibration_is_the_answers_to_the_first_validation_images(tmp_path):
    clean, held_out, rows = ran(tmp_path, {"name": "tiny:Slow", "eps": [0.1]}, **DIGITS, calibration=30)
    data = tiny.Digits()
    index = np.sort(data.calibration(30))
    for column, value in {"attack": "calibration", "norm": "none", "eps": 0, "split": "validation", "aim": -1}.items():
        assert (held_out[column] == value).all()
    images = data.validation.images[index.tolist()]
    labels, rejected, scores = answers(tiny.Wary, images)
    assert held_out["sample"].tolist() == index.tolist() and held_out["input_sha256"].tolist() == image_hashes(images)
    assert held_out["label"].tolist() == data.validation.labels[index.tolist()].tolist()
    assert held_out["clean_label"].tolist() == labels and held_out["clean_rejected"].tolist() == rejected
    assert held_out["clean_score"].tolist() == pytest.approx(scores, abs=1e-6)
    assert not set(held_out["input_sha256"]) & set(clean["input_sha256"]) and len(rows) == len(clean) == 12


def test_a_randomized_defense_is_calibrated_by_its_protocol(tmp_path):
    attack = {"name": "tiny:Slow", "eps": [0.1]}
    _, held_out, _ = ran(tmp_path, attack, dataset="digits", defense="tiny:Coin", n=5, draws=6, calibration=40)
    assert set(held_out["protocol"]) == {"worst-of-6"} and held_out["forwards"].eq(6).all()
    assert (held_out["clean_label"] == held_out["label"]).mean() < 0.2
