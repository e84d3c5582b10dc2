"""One job: the ladder of ε, what is attacked and what is counted, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from here import run_here

from manifold_bench.bench.datasets.base import image_hashes
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running import attacking
from manifold_bench.bench.running.job import inputs, noise

LADDER = [0.01, 0.02, 0.04, 0.08, 0.16]
BEATEN_BEFORE = [0, 6, 12, 18]
"""Images of `Grey` that bear a wrong label."""


@pytest.fixture(autouse=True)
def _nothing_seen():
    tiny.SEEN.clear()


def planned(*attacks, dataset="tiny:Grey", defense="tiny:Linear", n=24, **more) -> list[Job]:
    """The jobs of the clean pass and of those attacks."""
    matrix = parse_matrix(
        {"datasets": [{"name": dataset, "n": n}], "defenses": [defense], "attacks": list(attacks), **more}, "test.toml"
    )
    return make_plan(matrix, Options()).jobs


def ran(folder, *attacks, **more) -> list[pd.DataFrame]:
    """The stored rows of the clean pass and of those attacks, each run as a job; by ε, sample and aim."""
    jobs = planned(*attacks, **more)
    store = Store(folder)
    for job in jobs:
        run_here(job, folder)
    stored = (store.read(store.path(job))[0] for job in jobs)
    return [rows.sort_values(["eps", "sample", "aim"], ignore_index=True) for rows in stored]


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
    assert set(rows["reason"]) == {"ArithmeticError: out of luck and a second line"}
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


def answers(defense, images):
    """What a defense says of those images: label, rejected and score."""
    said = defense(tiny.DefenseSpec(shape=(1, 8, 8), num_classes=10)).verdict(images)
    return said.labels.tolist(), said.rejected.tolist(), said.scores.double().tolist()


def first_of_each_class():
    """The validation image that `Aimed` takes for each class."""
    data = tiny.Digits().validation
    return torch.stack([data.images[data.labels == label][0] for label in range(10)])


DIGITS = {"dataset": "digits", "defense": "tiny:Wary", "n": 12}


def test_scores_are_those_of_the_clean_and_of_the_judged_image(tmp_path):
    attack = {"name": "noise", "norm": "unrestricted", "draws": 1}
    clean, rows, invalid = ran(tmp_path, attack, {"name": "tiny:OutsideBox", "eps": [0.1]}, **DIGITS)
    images = tiny.Digits().test.images[clean["sample"].tolist()]
    assert clean["clean_score"].tolist() == pytest.approx(answers(tiny.Wary, images)[2], abs=1e-6)
    assert clean["adv_score"].equals(clean["clean_score"])
    assert rows["clean_score"].equals(clean["clean_score"]) and (rows["adv_score"] != rows["clean_score"]).all()
    assert rows["adv_rejected"].tolist() == (rows["adv_score"] > 0).tolist()
    assert rows["adv_rejected"].any() and not rows["adv_rejected"].all()
    assert invalid["adv_score"].equals(clean["clean_score"])  # nothing was judged: the clean answer stands


def test_a_defense_that_does_not_say_how_suspicious_has_no_scores(tmp_path):
    for rows in ran(tmp_path, {"name": "tiny:Slow", "eps": [0.1]}, dataset="digits", defense="tiny:Jury", n=10):
        assert rows["clean_score"].isna().all() and rows["adv_score"].isna().all()


def test_each_input_is_made_each_wrong_class_and_judged_for_itself(tmp_path):
    attack = {"name": "tiny:Aimed", "norm": "l2", "eps": [2, 99]}
    clean, rows = ran(tmp_path, attack, **DIGITS)
    assert [(2, 12 * 9), (99, int((~rows["success"][rows["eps"] == 2]).sum()))] == tiny.SEEN
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
    far = by_eps(rows)[99.0]
    assert far["adv_label"].tolist() == [labels[aim] for aim in far["aim"]]
    assert far["adv_rejected"].tolist() == [rejected[aim] for aim in far["aim"]]
    assert far["adv_score"].tolist() == pytest.approx([scores[aim] for aim in far["aim"]], abs=1e-6)
    assert far["success"].equals(~far["adv_rejected"] & (far["adv_label"] != far["label"]))
    assert rows.groupby(["eps", "sample"])["forwards"].sum().isin((18, 0)).all()
    assert np.allclose(far["distance"], far["l2"].where(far["success"], math.inf))


def test_an_input_that_is_wrong_already_is_beaten_for_every_aim(tmp_path):
    attack = {"name": "tiny:Aimed", "norm": "l2", "eps": [99]}
    clean, rows = ran(tmp_path, attack, dataset="digits", defense="tiny:NearestMean", n=100)
    wrong = clean["sample"][clean["success"]]
    assert 0 < len(wrong) < 50
    cell = rows[rows["sample"].isin(wrong)]
    assert len(cell) == 9 * len(wrong) and cell["success"].all() and (cell["distance"] == 0).all()
    assert sum(n for _, n in tiny.SEEN) == 9 * (100 - len(wrong))


def test_images_of_an_aiming_attack_show_several_inputs_and_several_classes(tmp_path):
    _, rows = ran(tmp_path, {"name": "tiny:Aimed", "norm": "l2", "eps": [99]}, **DIGITS)
    shown = rows[rows["image_original"].notna()]
    assert shown["sample"].nunique() == len(shown) == 8 and shown["aim"].nunique() > 4
    image = tiny.Digits().test.images[shown["sample"].iloc[0]]
    assert shown["image_original"].iloc[0] == (image * 255).round().to(torch.uint8).numpy().tobytes()


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
    _, rows, beside = ran(tmp_path, AIMED_NOISE, AIMED_NOISE | {"beside": 1}, **DIGITS | {"n": 30})
    assert set(zip(rows["sample"], rows["aim"], strict=True)) == {(i, c) for i in range(30) for c in range(10)}
    before = ~rows["clean_rejected"] & (rows["clean_label"] == rows["aim"])
    assert before.any() and before.groupby(rows["sample"]).sum().max() == 1
    assert (rows["distance"][before] == 0).all() and (rows["distance"][~before] > 0).all()
    assert rows["success"].equals(rows["valid"] & ~rows["adv_rejected"] & (rows["adv_label"] == rows["aim"]))
    assert rows["success"].all() and (rows["forwards"] == np.where(before, 0, 2)).all()
    assert beside["success"].equals(before) and not beside["adv_rejected"][~before].any()


@pytest.mark.parametrize("attack", [AIMED_NOISE, {"name": "pgd", "eps": [0.1], "steps": 3}])
def test_the_size_of_the_batch_changes_nothing(tmp_path, monkeypatch, attack):
    *_, rows = ran(tmp_path / "a", attack, **DIGITS)
    monkeypatch.setattr(attacking, "batch_rows", lambda x: 5)
    *_, again = ran(tmp_path / "b", attack, **DIGITS)
    pd.testing.assert_frame_equal(rows.drop(columns="seconds"), again.drop(columns="seconds"))


def test_a_cell_that_failed_has_its_rows_for_every_aim(tmp_path):
    attack = AIMED_NOISE | {"max_forwards": 1}
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


def test_without_a_ladder_every_strength_attacks_everything_anew(tmp_path):
    _, rows, once = ran(
        tmp_path,
        {"name": "tiny:Step", "eps": LADDER, "ladder": False},
        {"name": "tiny:Backwards", "eps": [0.08, 0.16], "smallest": 0.08, "ladder": False},
    )
    assert [*((eps, 24) for eps in LADDER), (0.08, 24)] == tiny.SEEN
    distance = exact("linf")
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


def test_without_a_ladder_noise_that_is_accepted_already_is_no_success_of_the_attack(tmp_path):
    attack = {"name": "noise", "norm": "fooling", "draws": 1, "ladder": False}
    _, rows = ran(tmp_path, attack, **DIGITS | {"n": 100})
    assert rows["success"].equals(~rows["adv_rejected"]) and (rows["l2"] > 1).all()
    assert (rows["success"] & rows["clean_rejected"]).any() and (~rows["success"] & ~rows["clean_rejected"]).any()
    assert (rows["distance"] == 0).equals(~rows["clean_rejected"])


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


BUDGETS = {
    "fgsm": {},
    "pgd": {"steps": 10},
    "apgd": {"steps": 10},
    "square": {"queries": 30},
    "tiny:BriefAutoAttack": {},
}


@pytest.mark.parametrize("defense", ["undefended", "pgd-training", "gmvae", "magnet"])
def test_the_ladder_finds_all_that_the_cross_product_finds_in_fewer_passes(tmp_path, defense):
    """Weights of the zoo; without a ladder every size attacks every input."""
    attacks = [
        {"name": name, "label": f"{name}-{ladder}", "norm": "linf", "eps": [0.05, 0.1, 0.2, 0.3], "ladder": ladder}
        | settings
        for name, settings in BUDGETS.items()
        for ladder in (True, False)
    ]
    _, *rows = ran(tmp_path, *attacks, dataset="digits", defense=defense, n=40)
    assert all((found["status"] == "ok").all() for found in rows)
    for ladder, crossed in zip(rows[::2], rows[1::2], strict=True):
        assert (ladder["success"] | ~crossed["success"]).all()
        # what was beaten at no smaller ε has been attacked as in the cross product: the very same finding
        first = ~ladder["success"].groupby(ladder["sample"]).shift(fill_value=False)
        assert (ladder["success"] == crossed["success"])[first].all()
        assert ladder["forwards"].sum() < crossed["forwards"].sum()
