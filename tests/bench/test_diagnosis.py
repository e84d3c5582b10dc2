"""The masking diagnosis on defenses with planted faults, on honest ones, and its checks on tables made by hand."""

from __future__ import annotations

import dataclasses
import json

import pandas as pd
import pytest
import torch
from here import run_here

from manifold_bench.attacks.threat import grey_levels, inside, on_the_grid, random_in_ball
from manifold_bench.bench.diagnosis.checks import CHECKS, overall
from manifold_bench.bench.diagnosis.diagnose import diagnose
from manifold_bench.bench.diagnosis.evidence import ITERATIVE, SINGLE_STEP, TRANSFER, Evidence
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.probes import strengths
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.records.measurements import status
from manifold_bench.bench.records.measurements import write_index as write_measurements
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import DIVERTED, PROBE, UNSTEADY
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.report.__main__ import main
from manifold_bench.bench.running.job import empty_records
from manifold_bench.bench.running.measuring import run_measurement

FAULTS = {
    "planted:Quantizing": "gradients",
    "planted:Shattered": "order",
    "planted:Noisy": "repeats",
    "planted:Constant": "gradients",
    "planted:Detaching": "gradients",
    "planted:RejectingAll": "accepts",
    "planted:BatchDependent": "repeats",
    "planted:OffGrid": "noise",
}
HONEST = ("undefended", "pgd-training", "planted:Saturating")
"""Attacks keep their direction at any scale of the logits, so that a saturated softmax masks nothing."""


def matrix(**keys):
    raw = {
        "datasets": [{"name": "digits", "n": 16}],
        "defenses": [*HONEST, *FAULTS],
        "attacks": [{"name": "noise", "draws": 1, "eps": [0.1, 0.25]}],
        "diagnose": True,
    }
    return parse_matrix(raw | keys, "test")


def planned(made):
    plan = make_plan(made, Options())
    return plan.jobs, plan.measurements


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer restarts and problems than a run has: what is planted here is found with these, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manifold_bench.bench.planning.probes.MORE_RESTARTS", 1)
        patch.setattr("manifold_bench.bench.planning.probes.QUERIES", 20)
        patch.setattr("manifold_bench.bench.planning.probes.PROBLEMS", 5)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosed")
    jobs, inspections = planned(matrix())
    store = Store(folder)
    store.write_index(jobs)
    for job in jobs:
        if job.skip:
            store.write(job, empty_records(job, "skipped", job.skip))
        else:
            run_here(job, folder)
    write_measurements(inspections, folder)
    for job in inspections:
        run_measurement(job, folder)
    return folder


@pytest.fixture(scope="module")
def diagnosis(folder):
    return {entry["defense"]: entry for entry in diagnose(Results.load(folder))["defenses"]}


def results(entry):
    return {check["check"]: check["result"] for check in entry["checks"]}


@pytest.mark.parametrize(("defense", "check"), FAULTS.items())
def test_a_planted_fault_is_flagged_by_the_check_that_is_meant_for_it(diagnosis, defense, check):
    assert results(diagnosis[defense])[check] == "fail", diagnosis[defense]
    assert diagnosis[defense]["result"] == "fail"


def test_a_detector_of_what_is_off_the_grid_is_caught_and_reached(diagnosis):
    """It rejects harmless noise, and falls to images rounded to the grid; attacks that round all images get past it."""
    found = results(diagnosis["planted:OffGrid"])
    assert found["noise"] == found["grid"] == "fail" and found["reached"] == "pass"


@pytest.mark.parametrize("defense", HONEST)
def test_an_honest_defense_is_not_flagged(diagnosis, defense):
    assert "fail" not in results(diagnosis[defense]).values(), diagnosis[defense]
    assert [name for name, result in results(diagnosis[defense]).items() if result == "not run"] == (
        ["undefended"] if defense == "undefended" else []
    )


def test_every_check_gives_its_evidence_and_what_follows(diagnosis):
    for entry in diagnosis.values():
        assert [check["check"] for check in entry["checks"]] == list(CHECKS)
        assert all(check["evidence"] and check["meaning"] and check["title"] for check in entry["checks"])


def test_probes_are_in_no_figure_and_change_no_key(folder):
    found = Results.load(folder)
    assert set(found.records["attack"]) == {"clean", "noise(draws=1)"}
    assert {f"{PROBE}{name}" for name in ("pgd", "fgsm", "more", "large", "noise", "query", "transfer")} == set(
        found.probes["attack"]
    )
    without, inspections = planned(matrix(diagnose=False))
    assert inspections == []
    assert {job.key for job in without} < {job.key for job in planned(matrix())[0]}


def test_the_same_run_again_has_nothing_left_to_do(folder):
    jobs, inspections = planned(matrix())
    detaching = "planted:Detaching"  # cannot be attacked at all
    assert {Store(folder).status(job) for job in jobs if job.defense.label != detaching} == {"ok"}
    assert {status(job, folder) for job in inspections if job.defense.label != detaching} == {"ok"}


def test_a_fail_marks_the_row_in_every_table_and_a_pass_does_not(folder, capsys):
    store, jobs = Store(folder), planned(matrix())[0]
    store.write_index([job for job in jobs if job.defense.label in ("undefended", "planted:Noisy")])
    assert main([str(folder)]) == 0
    store.write_index(jobs)
    for name in ("robustness", "attacks"):
        rows = (folder / "tables" / f"digits--linf--{name}.md").read_text(encoding="utf-8").splitlines()
        marked = {row.split(" ¶(")[0].strip("| ") for row in rows if row.startswith("| ") and " ¶(" in row}
        assert marked == {"planted:Noisy"}
        assert sum("docs/diagnosis.md" in row for row in rows) == 1
    assert r"\P{}(" in (folder / "tables" / "digits--linf--robustness.tex").read_text(encoding="utf-8")
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "### digits: diagnosis" in page and "gradients are neither zero nor non-finite" in page
    stored = json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))
    found = [(entry["defense"], entry["result"]) for entry in stored["defenses"]]
    assert found == [("undefended", "pass"), ("planted:Noisy", "fail")]
    shown = capsys.readouterr().out
    assert "diagnosis digits / planted:Noisy: FAIL" in shown and "planted:Noisy ¶(" in shown
    assert "undefended ¶" not in shown


# --- checks on tables made by hand -----------------------------------------------------------------------------------


def rows(role, beaten, n, eps=0.1, attack=None, ladder=True, **columns):
    """n inputs attacked at ε, those numbered in `beaten` with success."""
    base = {"attack": attack or role, "kind": attack if attack == "clean" else "attack", "role": role}
    base |= {"norm": "linf", "eps": eps, "ladder": ladder, "status": "ok", "reason": ""}
    base |= {"label": 0, "clean_label": 0, "clean_rejected": False, "adv_rejected": False}
    hit = [i in beaten for i in range(n)]
    return pd.DataFrame({"sample": range(n), "success": hit, "adv_label": [int(h) for h in hit], **(base | columns)})


def evidence(*frames, **inspections):
    stored = {name: {"status": "ok", "reason": "", "values": values} for name, values in inspections.items()}
    return Evidence(pd.concat(frames, ignore_index=True), None, stored, num_classes=10)


@pytest.mark.parametrize(
    ("single", "many", "result"),
    [
        (range(0), range(20), "pass"),
        (range(10), range(10), "pass"),
        (range(5), range(1, 5), "pass"),  # one of one: p = 0.5
        (range(5), range(0), "warn"),  # five of five: p = 0.031
        (range(7), range(0), "fail"),  # seven of seven: p = 0.0078
        (range(7), range(7, 11), "pass"),
    ],
)
def test_single_step_against_iterative(single, many, result):
    found = CHECKS["iterative"].finding(evidence(rows(SINGLE_STEP, single, 20), rows(ITERATIVE, many, 20)))
    assert found.result == result
    assert "n = 20" in found.evidence


def test_several_comparisons_make_a_fail_harder():
    frames = [
        rows(role, hits, 20, eps) for eps in (0.1, 0.2) for role, hits in ((SINGLE_STEP, range(7)), (ITERATIVE, ()))
    ]
    assert CHECKS["iterative"].finding(evidence(*frames)).result == "warn"  # 2 × 0.0078


def test_what_falls_at_a_smaller_size_counts_at_a_larger_one():
    """An iterative attack that beats all at 0.1 and, standing alone, none at 0.2 is no worse than a step at 0.2."""
    measured = evidence(
        rows(ITERATIVE, range(20), 20, 0.1, ladder=False),
        rows(ITERATIVE, (), 20, 0.2, ladder=False),
        rows(SINGLE_STEP, range(20), 20, 0.2),
    )
    assert CHECKS["iterative"].finding(measured).result == "pass"
    assert CHECKS["monotone"].finding(measured).result == "fail"


def test_a_ladder_cannot_show_a_fall():
    measured = evidence(rows(ITERATIVE, range(20), 20, 0.1), rows(ITERATIVE, (), 20, 0.2))
    assert CHECKS["monotone"].finding(measured).result == "not run"


def test_rejecting_everything_at_one_half_is_no_fault():
    rejected = rows(ITERATIVE, (), 20, 0.5, adv_rejected=True)
    assert CHECKS["half"].finding(evidence(rejected)).result == "pass"
    labels = list(range(10)) * 2
    held = rows(ITERATIVE, (), 20, 0.5, label=labels, clean_label=labels).assign(adv_label=labels)
    assert CHECKS["half"].finding(evidence(held)).result == "fail"
    assert CHECKS["half"].finding(evidence(held.assign(adv_rejected=True))).result == "pass"


def test_rejection_of_an_unbounded_attack_is_a_warning():
    measured = evidence(rows(ITERATIVE, (), 20, 1.0, adv_rejected=True))
    assert CHECKS["unbounded"].finding(measured).result == "warn"
    assert CHECKS["unbounded"].finding(evidence(rows(ITERATIVE, range(20), 20, 1.0))).result == "pass"
    assert CHECKS["unbounded"].finding(evidence(rows(ITERATIVE, (), 20, 1.0))).result == "fail"


@pytest.mark.parametrize(("gained", "result"), [(0, "pass"), (1, "pass"), (2, "pass"), (3, "warn"), (20, "fail")])
def test_more_steps(gained, result):
    measured = evidence(rows(ITERATIVE, (), 50), rows(ITERATIVE, range(gained), 50, attack=f"{PROBE}more"))
    found = CHECKS["more"].finding(measured)
    assert found.result == result
    assert "50 inputs are too few" in found.evidence


def test_381_inputs_can_show_that_more_steps_gain_nothing():
    measured = evidence(rows(ITERATIVE, (), 381), rows(ITERATIVE, (), 381, attack=f"{PROBE}more"))
    assert "too few" not in CHECKS["more"].finding(measured).evidence


@pytest.mark.parametrize(("zero", "result"), [(0, "pass"), (1, "warn"), (4, "fail")])
def test_zero_gradients(zero, result):
    measured = evidence(
        rows(ITERATIVE, (), 50), gradients={"n": 50, "zero": zero, "none": 0, "nonfinite": 0, "zero_margin": 0}
    )
    assert CHECKS["gradients"].finding(measured).result == result


@pytest.mark.parametrize(
    ("found", "random", "result"), [(20, 0, "pass"), (18, 0, "warn"), (15, 0, "fail"), (20, 15, "warn")]
)
def test_planted_examples(found, random, result):
    values = {"n": 20, "planted": 20, "found": found, "random": random, "shrunk": 0, "queries": 123}
    assert CHECKS["planted"].finding(evidence(rows(ITERATIVE, (), 20), planted=values)).result == result


@pytest.mark.parametrize(("rejected", "result"), [(0, "pass"), (2, "pass"), (4, "warn"), (25, "fail")])
def test_harmless_noise(rejected, result):
    values = {"noisy_n": 50, "noisy": rejected}
    assert CHECKS["noise"].finding(evidence(rows(ITERATIVE, (), 20), repeats=values)).result == result


@pytest.mark.parametrize(("rounded", "result"), [(0, "pass"), (1, "pass"), (3, "warn"), (10, "fail")])
def test_outputs_on_the_grid(rounded, result):
    values = {"n": 50, "rounded": rounded}
    assert CHECKS["grid"].finding(evidence(rows(ITERATIVE, (), 20), progress=values)).result == result


def test_an_evaluation_in_which_everything_attacked_is_rejected_has_failed():
    rejected = rows(ITERATIVE, (), 20, adv_rejected=True)
    assert CHECKS["reached"].finding(evidence(rejected)).result == "fail"
    assert CHECKS["reached"].finding(evidence(rejected.assign(eps=0.5))).result == "not run"
    assert CHECKS["reached"].finding(evidence(rows(ITERATIVE, (), 20))).result == "pass"
    one = rejected.assign(adv_rejected=[False] + [True] * 19)
    assert CHECKS["reached"].finding(evidence(one)).result == "pass"
    wrong_when_clean = one.assign(clean_label=[1] + [0] * 19, adv_label=[1] + [0] * 19)
    assert CHECKS["reached"].finding(evidence(wrong_when_clean)).result == "fail"


@pytest.mark.parametrize(("planted", "result"), [("pass", "pass"), ("not run", "warn"), ("fail", "fail")])
def test_without_the_planted_test_there_is_no_pass(planted, result):
    assert overall(dict.fromkeys(CHECKS, "pass") | {"planted": planted}) == result


def test_counts_that_are_missing_or_contradict_each_other_are_not_judged():
    measured = evidence(rows(ITERATIVE, (), 20), gradients={"n": 50}, planted={"n": 5, "planted": 5, "found": 9})
    assert CHECKS["gradients"].finding(measured).result == CHECKS["planted"].finding(measured).result == "not run"


def test_points_on_the_grid_stay_within_the_ball():
    x = torch.randint(0, 256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    for norm, eps in (("linf", 0.1), ("l2", 1.0)):
        points = random_in_ball(x, norm, eps, 1)
        rounded = on_the_grid(points, x, 255)
        assert grey_levels(x) == grey_levels(rounded) == 255 and inside(rounded, x, norm, eps).all()
        assert (rounded != x).any() and (rounded - points).abs().max() <= 1 / 255 + 1e-6
    assert grey_levels(torch.rand(2, 1, 8, 8)) is None and grey_levels(torch.tensor([0.0, 0.0625, 1.0])) == 16


def test_a_randomized_defense_that_says_so_is_warned_of_only():
    assert repeats(again=40, alone=8, others=20, randomized=1.0) == "warn"


@pytest.mark.parametrize(
    ("values", "result"),
    [
        ({}, "pass"),
        ({"uneven": 3}, "pass"),
        ({"again": 1}, "fail"),
        ({"again": 1, "uneven": 3}, "fail"),
        ({"alone": 1}, "fail"),
        ({"alone": 1, "uneven": 3}, "warn"),
        ({"others": 1}, "fail"),
        ({"others": 1, "uneven": 3}, "fail"),
        ({"others": 1, "uneven": 3, "optimises": 1.0}, "warn"),
        ({"others": 1, "uneven": 0, "optimises": 1.0}, "fail"),
        ({"remark": DIVERTED}, "fail"),  # which no call without a gradient shows
    ],
)
def test_rounding_by_the_size_of_the_batch_is_distinguished_from_dependence_on_other_images(values, result):
    assert repeats(**values) == result


@pytest.mark.parametrize(
    ("remark", "result"),
    [
        ("", "not run"),
        ("its outputs look like probabilities", "not run"),
        ("it is randomized and judged on one draw; set draws to count the worst of several", "not run"),
        (f"{UNSTEADY}depend on the batch", "fail"),
        (f"it rejects every image; {UNSTEADY}differ from call to call", "fail"),
    ],
)
def test_without_its_inspection_only_remarks_on_answers_that_change_fail_the_defense(remark, result):
    clean = rows("", (), 20, attack="clean", eps=0.0, norm="none", reason=remark)
    assert CHECKS["repeats"].finding(evidence(clean, rows(ITERATIVE, (), 20))).result == result


def repeats(remark="", **values):
    """The result of the check on these counts; what is not given is 0 of 50, 8 or 25."""
    zeros = dict.fromkeys(("again", "alone", "others", "uneven", "optimises", "randomized"), 0)
    values_of_all = {"n": 50, "alone_n": 8, "others_n": 25, "noisy_n": 50, "noisy": 0} | zeros | values
    return CHECKS["repeats"].finding(evidence(rows(ITERATIVE, (), 20, reason=remark), repeats=values_of_all)).result


def test_without_probes_the_records_are_judged_and_the_rest_is_not_run():
    found = evidence(rows(SINGLE_STEP, range(20), 20), rows(ITERATIVE, (), 20), rows("", (), 20, attack="clean"))
    results = {name: rule.finding(found).result for name, rule in CHECKS.items()}
    assert results.pop("iterative") == "fail" and results.pop("accepts") == results.pop("reached") == "pass"
    assert set(results.values()) == {"not run"}


def test_a_transfer_that_takes_more_from_the_defense_than_from_none():
    mine, other = (rows(TRANSFER, hits, 20, attack=f"{PROBE}transfer") for hits in (range(15), range(3)))
    measured = dataclasses.replace(evidence(mine), undefended=other)
    assert CHECKS["undefended"].finding(measured).result == "fail"
    assert CHECKS["undefended"].finding(dataclasses.replace(evidence(other), undefended=mine)).result == "pass"


def test_names_of_probes_are_reserved():
    with pytest.raises(InputError, match=r"attacks\[0\]: 'diagnosis:pgd' is a reserved name"):
        matrix(attacks=[{"name": "pgd", "label": "diagnosis:pgd", "eps": [0.1]}])


def test_strengths_are_those_of_the_matrix():
    def chosen(*attacks):
        return strengths(matrix(attacks=list(attacks)), "digits")

    assert chosen({"name": "pgd", "eps": [0.1, 0.2, 0.3, 0.4, 0.5]}) == ("linf", (0.1, 0.2, 0.4))
    assert chosen({"name": "pgd", "eps": [0.2]}) == ("linf", (0.1, 0.2))
    assert chosen({"name": "pgd", "norm": "l2", "eps": [1.0, 2.0]}) == ("l2", (1.0, 2.0))
    assert chosen({"name": "noise", "norm": "fooling"}) == ("linf", (0.05, 0.1))
