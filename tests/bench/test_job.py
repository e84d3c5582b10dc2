"""One job: the ladder of ε, what is attacked and what is counted, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from bench.job import run_job
from bench.matrix import parse_matrix
from bench.plan import Job, Options, dataset_refs, defense_ref, make_jobs
from bench.store import Store

LADDER = [0.01, 0.02, 0.04, 0.08, 0.16]
BEATEN_BEFORE = [0, 6, 12, 18]
"""Images of `Grey` that bear a wrong label."""


@pytest.fixture(autouse=True)
def _nothing_seen():
    tiny.SEEN.clear()


def ran(folder, *attacks, dataset="tiny:Grey", defense="tiny:Linear", n=24, draws=1, seed=0) -> list[pd.DataFrame]:
    """The stored rows of the clean pass and of those attacks, each run as a job; by ε and sample."""
    matrix = parse_matrix(
        {
            "datasets": [{"name": dataset, "n": n}], "defenses": [defense], "attacks": list(attacks), "draws": draws,
            "seed": seed,
        },
        "test.toml",
    )  # fmt: skip
    datasets = dataset_refs(matrix, Options())
    refs = {ref.name: [defense_ref(choice, ref.load()) for choice in matrix.defenses] for ref, _ in datasets}
    jobs: list[Job] = make_jobs(matrix, Options(), datasets, refs)
    store = Store(folder)
    for job in jobs:
        run_job(job, folder)
    stored = (store.read(store.path(job))[0] for job in jobs)
    return [rows.sort_values(["eps", "sample"], ignore_index=True) for rows in stored]


def exact(norm: str) -> np.ndarray:
    """|w·x + b| / ‖w‖ in the dual norm, 0 where the label is wrong to begin with."""
    x = tiny.Grey().test.images.flatten(1)
    dual = tiny.WEIGHTS.abs().sum() if norm == "linf" else tiny.WEIGHTS.norm()
    distance = (x @ tiny.WEIGHTS + tiny.BIAS).abs() / dual
    distance[BEATEN_BEFORE] = 0
    return distance.numpy()


def by_eps(rows: pd.DataFrame) -> dict[float, pd.DataFrame]:
    return {float(eps): group.sort_values("sample", ignore_index=True) for eps, group in rows.groupby("eps")}


@pytest.mark.parametrize("attack", ["tiny:Step", "fgsm", "pgd"])
def test_success_at_each_strength_is_the_closed_form(tmp_path, attack):
    _, rows = ran(tmp_path, {"name": attack, "eps": LADDER})
    assert (rows["status"] == "ok").all() and rows["valid"].all()
    distance = exact("linf")
    assert (distance > LADDER[0]).sum() > 3 and (distance < LADDER[-1]).sum() > 3
    for eps, cell in by_eps(rows).items():
        assert cell["success"].tolist() == (distance < eps).tolist()
        assert (cell["linf"] <= eps + 1e-6).all()


def test_the_ladder_is_climbed_by_survivors_alone_and_the_beaten_stay_beaten(tmp_path):
    _, rows = ran(tmp_path, {"name": "tiny:Step", "eps": LADDER})
    distance = exact("linf")
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
    _, rows = ran(tmp_path, {"name": "tiny:Backwards", "eps": [0.08, 0.16], "smallest": 0.08})
    small, large = by_eps(rows).values()
    assert small["success"].sum() > len(BEATEN_BEFORE) and small["success"].tolist() == large["success"].tolist()


def test_distance_is_zero_where_wrong_already_and_infinite_where_never_beaten(tmp_path):
    clean, rows = ran(tmp_path, {"name": "tiny:Step", "eps": LADDER})
    assert clean["distance"].tolist() == [0 if i in BEATEN_BEFORE else math.inf for i in range(24)]
    assert clean["success"].tolist() == [i in BEATEN_BEFORE for i in range(24)]
    known = [0 if d == 0 else next((e for e in LADDER if d < e), math.inf) for d in exact("linf")]
    for cell in by_eps(rows).values():
        assert cell["distance"].tolist() == pytest.approx(known, abs=1e-6)
        wrong = cell[cell["sample"].isin(BEATEN_BEFORE)]
        assert wrong["success"].all() and (wrong["linf"] == 0).all() and (wrong["forwards"] == 0).all()


def test_one_run_of_a_minimal_attack_serves_every_strength(tmp_path):
    ladder = [0.05, 0.1, 0.2, 0.4]
    _, rows = ran(tmp_path, {"name": "tiny:Exact", "norm": "l2", "eps": ladder})
    assert [(math.inf, 24 - len(BEATEN_BEFORE))] == tiny.SEEN
    distance = exact("l2")
    cells = by_eps(rows)
    for eps, cell in cells.items():
        assert cell["distance"].tolist() == pytest.approx(distance.tolist(), rel=2e-4)
        assert cell["success"].tolist() == (distance * 1.0001 <= eps).tolist()
        assert np.allclose(cell["l2"], np.where(cell["success"], distance, 0), rtol=2e-4)
        assert (cell["forwards"] == np.where((eps == ladder[0]) & (distance > 0), 7, 0)).all()
        assert (cell["backwards"] == np.where((eps == ladder[0]) & (distance > 0), 3, 0)).all()
    assert 4 < cells[ladder[0]]["success"].sum() < cells[ladder[-1]]["success"].sum()


def test_a_minimal_attack_that_fails_is_infinitely_far_and_invalid(tmp_path):
    _, rows = ran(tmp_path, {"name": "tiny:Exact", "norm": "l2", "eps": [0.1, 9], "fails": True})
    tried = ~rows["sample"].isin(BEATEN_BEFORE)
    assert not rows["success"][tried].any() and not rows["valid"][tried].any()
    assert np.isinf(rows["distance"][tried]).all()
    assert rows["success"][~tried].all() and rows["valid"][~tried].all() and (rows["distance"][~tried] == 0).all()
    assert (rows["adv_label"][tried] == rows["label"][tried]).all()  # the clean answer stands


def test_deepfool_finds_the_closed_form(tmp_path):
    _, rows = ran(tmp_path, {"name": "art:DeepFool", "norm": "l2", "eps": [0.4], "epsilon": 0.02})
    assert rows["distance"].tolist() == pytest.approx(exact("l2").tolist(), rel=0.03, abs=1e-4)


@pytest.mark.parametrize("attack", ["InPlace", "OutsideBall", "OutsideBox", "NanPixels"])
def test_what_breaks_the_rules_leaves_the_originals_and_the_clean_answers_as_they_were(tmp_path, attack):
    before = tiny.Digits().test.images.clone()
    clean, rows = ran(
        tmp_path, {"name": f"tiny:{attack}", "eps": [0.1]}, dataset="digits", defense="tiny:NearestMean", n=10
    )
    assert not rows["valid"].any() and not rows["success"].any()
    for column in ("label", "clean_label", "clean_rejected", "input_sha256"):
        assert rows[column].tolist() == clean[column].tolist()
    assert rows["adv_label"].tolist() == clean["clean_label"].tolist()
    assert torch.equal(tiny.Digits().test.images, before)


def test_a_failed_job_says_why_in_every_row_and_holds_no_figure(tmp_path):
    _, rows = ran(tmp_path, {"name": "tiny:Raises", "eps": [0.1, 0.2]})
    assert len(rows) == 48 and set(rows["status"]) == {"failed"}
    assert set(rows["reason"]) == {"ArithmeticError: out of luck"}
    assert not rows["success"].any() and not rows["valid"].any() and not rows["forwards"].any()
    log = list((tmp_path / "records" / "failures").glob("*.txt"))
    assert len(log) == 1 and "and a second line" in log[0].read_text(encoding="utf-8")


def test_passes_beyond_the_cap_fail_the_cell(tmp_path):
    _, rows = ran(tmp_path, {"name": "pgd", "eps": [1e-4], "steps": 20, "max_forwards": 5})
    assert set(rows["status"]) == {"failed"} and rows["reason"].str.contains("more than 5").all()


@pytest.mark.parametrize(("draws", "protocol"), [(1, "single-shot"), (6, "worst-of-6")])
def test_a_randomized_defense_is_judged_by_its_protocol(tmp_path, draws, protocol):
    attack = {"name": "tiny:Slow", "eps": [1e-6]}
    clean, rows = ran(tmp_path, attack, dataset="digits", defense="tiny:Coin", n=40, draws=draws)
    for frame in (clean, rows):
        assert set(frame["protocol"]) == {protocol}
    accuracy = (clean["clean_label"] == clean["label"]).mean()
    # it is right by the throw of a coin: half the time when asked once, hardly ever six times in a row
    assert (0.2 < accuracy < 0.8) if draws == 1 else accuracy < 0.2
    assert clean["forwards"].eq(draws).all()
    assert clean["reason"].eq("").all()


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
    vandal, after = {"name": "tiny:Vandal", "eps": [0.1]}, {"name": "tiny:Slow", "eps": [1e-6]}
    _, broken, sound = ran(tmp_path, vandal, after, dataset="digits", defense="tiny:NearestMean", n=10)
    assert broken["reason"].str.contains("changed the defense").all()
    assert (sound["adv_label"] == sound["clean_label"]).all()


def test_images_are_kept_of_the_first_inputs_and_are_what_was_judged(tmp_path):
    _, rows = ran(tmp_path, {"name": "tiny:Step", "eps": LADDER})
    cell = by_eps(rows)[LADDER[-1]]
    kept = cell.index[cell["image_original"].notna()]
    assert len(kept) == 8 and cell["image_adversarial"].notna().sum() == 8
    for i in kept:
        original, adversarial = (
            np.frombuffer(cell[name][i], dtype=np.uint8) / 255 for name in ("image_original", "image_adversarial")
        )
        assert np.abs(original - tiny.Grey().test.images[i].flatten().numpy()).max() < 0.002
        assert np.abs(adversarial - original).max() == pytest.approx(cell["linf"][i], abs=0.005)
