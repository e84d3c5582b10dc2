"""Attacks that aim at a class, and those that begin with noise: what is attacked and what is a success."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from one_job import DIGITS, answers, by_eps, planned, ran

from manifold_bench.bench.datasets.base import image_hashes
from manifold_bench.bench.running import attacking
from manifold_bench.bench.running.job import inputs, noise


def first_of_each_class():
    """The validation image that `Aimed` takes for each class."""
    data = tiny.Digits().validation
    return torch.stack([data.images[data.labels == label][0] for label in range(10)])


def test_each_input_is_made_each_wrong_class_and_judged_for_itself(tmp_path):
    attack = {"name": "tiny:Aimed", "norm": "l2", "eps": [2, 8]}
    clean, rows = ran(tmp_path, attack, **DIGITS)
    assert [(2, 12 * 9), (8, int((~rows["success"][rows["eps"] == 2]).sum()))] == tiny.SEEN
    labels, rejected, scores = answers(tiny.Wary, first_of_each_class())
    for cell in by_eps(rows).values():
        pairs = set(zip(cell["sample"], cell["aim"], strict=True))
        assert pairs == {
            (sample, aim)
            for sample, label in zip(clean["sample"], clean["label"], strict=True)
            for aim in range(10)
            if aim != label
        }
        known = clean.set_index("sample").loc[cell["sample"]].reset_index()
        for column in ("label", "input_sha256", "clean_label", "clean_rejected", "clean_score"):
            assert cell[column].equals(known[column])
    far = by_eps(rows)[8.0]
    assert far["adv_label"].tolist() == [labels[aim] for aim in far["aim"]]
    assert far["adv_rejected"].tolist() == [rejected[aim] for aim in far["aim"]]
    assert far["adv_score"].tolist() == pytest.approx([scores[aim] for aim in far["aim"]], abs=1e-6)
    assert far["success"].equals(~far["adv_rejected"] & (far["adv_label"] != far["label"]))
    assert rows.groupby(["eps", "sample"])["forwards"].sum().isin((18, 0)).all()
    assert np.allclose(far["distance"], far["l2"].where(far["success"], math.inf))


def test_an_input_that_is_wrong_already_is_beaten_for_every_aim(tmp_path):
    attack = {"name": "tiny:Aimed", "norm": "l2", "eps": [8]}
    clean, rows = ran(tmp_path, attack, dataset="digits", defense="tiny:NearestMean", n=100)
    wrong = clean["sample"][clean["success"]]
    assert 0 < len(wrong) < 50
    cell = rows[rows["sample"].isin(wrong)]
    assert len(cell) == 9 * len(wrong) and cell["success"].all() and (cell["distance"] == 0).all()
    assert sum(n for _, n in tiny.SEEN) == 9 * (100 - len(wrong))


def test_images_of_an_aiming_attack_show_several_inputs_and_several_classes(tmp_path):
    _, rows = ran(tmp_path, {"name": "tiny:Aimed", "norm": "l2", "eps": [8]}, **DIGITS)
    shown = rows[rows["image_original"].notna()]
    assert shown["sample"].nunique() == len(shown) == 8 and shown["aim"].nunique() > 4
    image = tiny.Digits().test.images[shown["sample"].iloc[0]]
    assert shown["image_original"].iloc[0] == image.numpy().tobytes()


NOISE = {"name": "tiny:Slow", "norm": "fooling"}


AIMED_NOISE = {"name": "tiny:Aimed", "norm": "fooling", "classes": "every"}


def test_noise_images_depend_on_seed_and_number_alone(tmp_path):
    _, rows = ran(tmp_path / "a", NOISE, **DIGITS)
    assert rows["sample"].tolist() == list(range(12)) and rows["input_sha256"].nunique() == 12
    assert rows["input_sha256"].tolist() == image_hashes(noise((1, 8, 8), tuple(range(12)), 0))
    for column, value in {"label": -1, "aim": -1, "split": "noise", "eps": math.inf, "norm": "fooling"}.items():
        assert (rows[column] == value).all()
    _, fewer = ran(tmp_path / "b", NOISE, **DIGITS | {"n": 5})
    assert fewer["input_sha256"].tolist() == rows["input_sha256"].tolist()[:5]
    _, others = ran(tmp_path / "c", NOISE, **DIGITS, seed=1)
    assert not set(others["input_sha256"]) & set(rows["input_sha256"])
    images = noise((1, 8, 8), tuple(range(200)), 0)
    assert images.min() >= 0 and images.max() <= 1 and images.mean().item() == pytest.approx(0.5, abs=0.01)
    assert images.var().item() == pytest.approx(1 / 12, rel=0.05)


def test_noise_that_is_accepted_fools_and_costs_nothing(tmp_path):
    _, rows = ran(tmp_path, {"name": "noise", "norm": "fooling", "draws": 1}, **DIGITS | {"n": 100})
    labels, rejected, scores = answers(tiny.Wary, noise((1, 8, 8), tuple(range(100)), 0))
    assert rows["clean_label"].tolist() == labels and rows["clean_rejected"].tolist() == rejected
    assert rows["clean_score"].tolist() == pytest.approx(scores, abs=1e-6)
    before = ~rows["clean_rejected"]
    assert 20 < before.sum() < 80
    assert rows["success"][before].all() and (rows["distance"][before] == 0).all()
    drawn = rows[~before]
    assert drawn["success"].equals(~drawn["adv_rejected"]) and 0.2 < drawn["success"].mean() < 0.8
    assert np.allclose(drawn["distance"], drawn["l2"].where(drawn["success"], math.inf)) and (drawn["l2"] > 1).all()


def test_noise_with_an_aim_fools_only_as_that_class(tmp_path):
    _, rows, shifted = ran(tmp_path, AIMED_NOISE, AIMED_NOISE | {"shift": 1}, **DIGITS | {"n": 30})
    assert set(zip(rows["sample"], rows["aim"], strict=True)) == {(i, c) for i in range(30) for c in range(10)}
    before = ~rows["clean_rejected"] & (rows["clean_label"] == rows["aim"])
    assert before.any() and before.groupby(rows["sample"]).sum().max() == 1
    assert (rows["distance"][before] == 0).all() and (rows["distance"][~before] > 0).all()
    assert rows["success"].equals(rows["valid"] & ~rows["adv_rejected"] & (rows["adv_label"] == rows["aim"]))
    assert rows["success"].all() and (rows["forwards"] == np.where(before, 0, 2)).all()
    assert shifted["success"].equals(before) and not shifted["adv_rejected"][~before].any()


@pytest.mark.parametrize("attack", [AIMED_NOISE, {"name": "pgd", "eps": [0.1], "steps": 3}])
def test_the_size_of_the_batch_changes_nothing(tmp_path, monkeypatch, attack):
    *_, rows = ran(tmp_path / "a", attack, **DIGITS)
    monkeypatch.setattr(attacking, "batch_rows", lambda x: 5)
    *_, again = ran(tmp_path / "b", attack, **DIGITS)
    pd.testing.assert_frame_equal(rows.drop(columns="seconds"), again.drop(columns="seconds"))


def test_a_cell_that_failed_has_its_rows_for_every_aim(tmp_path):
    attack = AIMED_NOISE | {"name": "broken:AimsAndRaises"}
    _, rows = ran(tmp_path, attack, **DIGITS)
    assert len(rows) == 120 and set(rows["status"]) == {"failed"} and (rows["label"] == -1).all()
    assert rows["clean_score"].isna().all() and rows["adv_score"].isna().all()


def test_estimates_count_every_aim():
    one, wrong, every, fooling = (
        planned(attack | {"norm": norm}, **DIGITS)[1]
        for attack, norm in (
            ({"name": "tiny:Slow"}, "unrestricted"),
            ({"name": "tiny:Aimed"}, "unrestricted"),
            ({"name": "tiny:Aimed", "classes": "every"}, "unrestricted"),
            ({"name": "tiny:Aimed"}, "fooling"),
        )
    )
    assert [job.n for job in (one, wrong, every, fooling)] == [12] * 4
    assert [len(inputs(job)) for job in (one, wrong, every, fooling)] == [12, 12 * 9, 12 * 10, 12 * 10]
    for job in (wrong, every, fooling):
        assert job.passes == one.passes * len(inputs(job)) / len(inputs(one))


def test_without_a_ladder_noise_that_is_accepted_already_is_no_success_of_the_attack(tmp_path):
    attack = {"name": "noise", "norm": "fooling", "draws": 1, "ladder": False}
    _, rows = ran(tmp_path, attack, **DIGITS | {"n": 100})
    assert rows["success"].equals(~rows["adv_rejected"]) and (rows["l2"] > 1).all()
    assert (rows["success"] & rows["clean_rejected"]).any() and (~rows["success"] & ~rows["clean_rejected"]).any()
    assert (rows["distance"] == 0).equals(~rows["clean_rejected"])
