"""Records of baselines are shown together with a new system where keys agree; a line says where they do not."""

from __future__ import annotations

import json

import pytest
from handmade import RUN

from manifold_bench.bench.planning.folders import BASELINES
from manifold_bench.bench.planning.narrow import narrowed
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix, read_matrix
from manifold_bench.bench.records.provenance import Reused
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.job import empty_records
from manifold_bench.bench.running.reuse import baseline_folders, comparable, missing_record_reasons, reuse

MATRIX = {
    "datasets": [{"name": "digits", "n": 10}],
    "defenses": ["tiny:NearestMean"],
    "attacks": [{"name": "pgd", "eps": [0.1, 0.2], "steps": 10}],
}


def planned(options: Options | None = None, matrix=None):
    """The jobs of a matrix."""
    matrix, options = matrix or parse_matrix(MATRIX, "test.toml"), options or Options()
    return make_plan(matrix, options).jobs


def reasons(jobs, *folders):
    """What is said of jobs without stored records, but the advice."""
    return [line.removeprefix("not in the report: ").split("; ")[0] for line in missing_record_reasons(jobs, folders)]


@pytest.fixture
def baseline(tmp_path):
    """A baseline with both jobs' records (skipped ones serve as well), and what its run.json tells."""
    folder = tmp_path / "baseline"
    for job in planned():
        Store(folder).write(job, empty_records(job, "skipped", "by hand"))
    (folder / "run.json").write_text(json.dumps(RUN | {"code": "0123456789abcdef", "started": "2026-11-20T10:00:00Z"}))
    return folder


def test_records_with_the_same_key_are_taken_whole(baseline, tmp_path):
    jobs, store = planned(), Store(tmp_path / "out")
    expected = [Reused(str(baseline), "0123456789ab", "2026-11-20", 2)]
    assert reuse(jobs, store, [tmp_path / "nowhere", baseline]) == expected
    assert [store.status(job) for job in jobs] == ["skipped", "skipped"]
    assert reuse(jobs, store, [baseline]) == expected  # still from there
    assert str(expected[0]).startswith("2 jobs from the baseline ") and not missing_record_reasons([], [baseline])


def test_what_the_run_has_itself_stays(baseline, tmp_path):
    jobs, store = planned(), Store(tmp_path / "out")
    store.write(jobs[0], empty_records(jobs[0], "failed", "its own"))
    assert [one.jobs for one in reuse(jobs, store, [baseline])] == [1]
    assert [store.status(job) for job in jobs] == ["failed", "skipped"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(n=7), "the stored records have another n of the data set (10, not 7)"),
        (Options(device="meta"), 'the stored records have another device ("cpu", not "meta")'),
    ],
)
def test_another_key_is_not_taken_and_named(baseline, tmp_path, options, says):
    jobs = planned(options)
    assert reuse(jobs, Store(tmp_path / "out"), [baseline]) == []
    assert not (tmp_path / "out").exists()
    assert reasons(jobs, baseline) == [f"digits / tiny:NearestMean / clean (and 1 more job): {says}"]
    assert reasons(jobs[1:]) == ["digits / tiny:NearestMean / pgd(steps=10) linf: no stored records"]


def test_a_damaged_or_failed_record_is_not_taken(baseline, tmp_path):
    jobs = planned()
    Store(baseline).path(jobs[0]).write_bytes(b"PAR1")
    Store(baseline).write(jobs[1], empty_records(jobs[1], "failed", "why"))
    assert reuse(jobs, Store(tmp_path / "out"), [baseline]) == []
    assert [line.rsplit(": ", 1)[1] for line in reasons(jobs, baseline)] == [
        "no stored records",
        "its stored records are damaged or not ok",
    ]


def test_baselines_are_looked_for_here_and_with_the_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with_the_code = baseline_folders("quick")
    assert len(with_the_code) == 1
    (tmp_path / BASELINES / "quick").mkdir(parents=True)
    assert [folder.resolve() for folder in baseline_folders("quick")] == [
        tmp_path / BASELINES / "quick",
        with_the_code[0].resolve(),
    ]
    assert baseline_folders("no such matrix") == []


def test_other_defenses_are_shown_under_attacks_that_the_named_one_has_met(tmp_path):
    attacks = [{"name": name, "eps": [0.1]} for name in ("pgd", "fgsm")]
    whole = parse_matrix(MATRIX | {"attacks": attacks}, "test.toml")
    store = Store(tmp_path)
    plan = make_plan(narrowed(whole, defenses=["undefended"], attacks=["fgsm"]), Options(), whole)
    assert [job.label for job in plan.jobs] == ["clean", "fgsm"]
    shown = [(job.defense.label, job.label) for job in comparable(plan, [store])]
    own = ("undefended", "pgd")
    assert shown == [("tiny:NearestMean", "clean"), ("tiny:NearestMean", "fgsm"), own]
    (met,) = (job for job in plan.other_jobs if (job.defense.label, job.label) == own)
    store.write(met, empty_records(met, "skipped", "by hand"))
    shown = [(job.defense.label, job.label) for job in comparable(plan, [store])]
    assert shown == [("tiny:NearestMean", "clean"), ("tiny:NearestMean", "pgd"), ("tiny:NearestMean", "fgsm"), own]


def test_the_baseline_of_quick_is_up_to_date(tmp_path):
    """Otherwise: `manifold-bench run --matrix quick`, and `manifold-bench baseline results/quick`."""
    jobs = planned(matrix=read_matrix("quick"))
    assert [one.jobs for one in reuse(jobs, Store(tmp_path), baseline_folders("quick"))] == [len(jobs)]
