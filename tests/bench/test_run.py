"""`manifold-bench run` as a user meets it: what it writes, and what a repeated command does."""

from __future__ import annotations

import json
from collections import Counter

import pandas as pd
import pytest
from commands import GOOD, bench_run, figures, last_events, matrix_file, record_files, records

from manifold_bench.bench.metrics.summary import SUMMARY_COLUMNS
from manifold_bench.bench.records.log import Log
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.run import main
from manifold_bench.bench.running.stamp import STAMP
from manifold_bench.bench.text import jobs_text


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Matrix file, output folder and the finished command of a run with two workers."""
    folder = tmp_path_factory.mktemp("good")
    matrix = matrix_file(folder, GOOD)
    return matrix, folder / "out", bench_run(matrix, folder / "out")


def test_a_run_ends_well_and_shows_everything(good):
    matrix, out, done = good
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    states = Results.load(out).states.values()
    assert Counter(states) == {"ok": 6, "skipped": 2}
    assert "worst case over attacks" in done.stdout and done.stdout.count(jobs_text(states)) == 1
    for report in ("report.md", "report.html"):
        assert jobs_text(states) in (out / report).read_text(encoding="utf-8")

    table = pd.read_csv(out / "summary.csv")
    assert tuple(table.columns) == SUMMARY_COLUMNS
    shown = figures(out)
    for defense in ("tiny:NearestMean", "coin"):
        for attack, eps in [("clean", 0.0), *((a, e) for a in ("noise(draws=2)", "pgd(steps=10)") for e in (0.1, 0.3))]:
            assert shown.loc[(defense, attack, eps), "status"] == "ok"
        assert shown.loc[(defense, "unsuited", 0.1), "status"] == "skipped"
        assert "makes no sense" in shown.loc[(defense, "unsuited", 0.1), "reason"]
        assert ("worst-case", 0.3) in shown.loc[defense].index
    robust = shown["robust_accuracy"]["tiny:NearestMean"]
    assert robust["pgd(steps=10)", 0.3] <= robust["pgd(steps=10)", 0.1] <= robust["clean", 0.0]

    stored = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert stored["finished"] is True and stored["seeds"] == [0] and stored["draws"] == 3 and stored["workers"] == 2
    assert stored["matrix"]["source"] == str(matrix) and stored["matrix"]["datasets"] == [{"name": "digits", "n": 12}]
    assert {"code", "python", "packages", "machine", "wall_seconds", "started", "device", "jobs"} <= stored.keys()
    assert len(stored["jobs"]) == 8
    assert 2**26 < stored["peak_memory"]["process"] < stored["peak_memory"]["run"]  # torch alone takes more

    for pattern in ("tables/*.md", "tables/*.tex", "plots/*curves*", "plots/*heatmap*", "plots/*images*", "report.md"):
        assert list(out.glob(pattern)), pattern


def test_the_log_has_every_job_from_beginning_to_end(good):
    _, out, done = good
    events, _ = Log(out / "log.jsonl").read()
    first, last = events[0], next(event for event in events if event["event"] == "run finished")
    assert first["event"] == "run started" and "--matrix" in first["command"] and "torch" in first["packages"]
    assert (last["jobs"], last["failed"], last["skipped"]) == (6, 0, 2) and last["memory"] > 2**26
    by_kind = {kind: [e for e in events if e["event"] == f"job {kind}"] for kind in ("started", "finished", "skipped")}
    assert {kind: len({event["key"] for event in found}) for kind, found in by_kind.items()} == {
        "started": 6,
        "finished": 6,
        "skipped": 2,
    }
    assert all("makes no sense" in event["reason"] for event in by_kind["skipped"])
    rows = records(out)
    for event in by_kind["finished"]:
        mine = rows[rows["key"] == event["key"][:16]]
        assert (event["forwards"], event["backwards"]) == (mine["forwards"].sum(), mine["backwards"].sum())
        assert event["seconds"] >= event["measured"] > 0 and event["memory"] > 2**26
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == 6 and lines[-1].startswith("[6/6] digits / ")


def test_quiet_is_failures_and_one_line_of_result(good, tmp_path):
    done = bench_run(good[0], tmp_path / "out", "--quiet", "--n", 3, "--defense", "tiny:NearestMean")
    assert done.returncode == 0 and done.stderr == ""
    states = Results.load(tmp_path / "out").states.values()
    assert Counter(states) == {"ok": 3, "skipped": 1}
    (line,) = done.stdout.splitlines()
    assert line.startswith(jobs_text(states)) and (tmp_path / "out" / "report.md").exists()


def test_records_say_how_they_came_about(good):
    rows = records(good[1])
    assert set(rows["protocol"][rows["defense"] == "coin"]) == {"worst-of-3"}
    assert set(rows["protocol"][rows["defense"] != "coin"]) == {"deterministic"}
    assert rows.groupby("key").size().isin((12, 24)).all()
    guessed = (rows["defense"] == "coin") & (rows["kind"] == "clean")
    assert (rows["reason"] == "").eq((rows["status"] == "ok") & ~guessed).all()
    assert rows["reason"][guessed].str.contains("as guesses are").all()


def test_the_same_command_again_computes_nothing_and_says_the_same(good):
    matrix, out, _ = good
    before, summary = record_files(out), (out / "summary.csv").read_bytes()
    for stamped, event in ((True, "run found finished"), (False, "run finished")):
        if not stamped:
            (out / STAMP).unlink()
        done = bench_run(matrix, out)
        assert done.returncode == 0 and Log(out / "log.jsonl").read()[0][-1]["event"] == event
        assert record_files(out) == before
        assert (out / "summary.csv").read_bytes() == summary


def test_one_worker_and_two_give_the_same_records(good, tmp_path):
    done = bench_run(good[0], tmp_path / "out", workers=1)
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(records(tmp_path / "out"), records(good[1]))


def test_filters_n_and_seed_cut_and_add(good, tmp_path):
    done = bench_run(
        good[0],
        tmp_path / "out",
        "--n",
        5,
        "--seed",
        7,
        "--defense",
        "tiny:NearestMean",
        "--attack",
        "pgd",
        "--attack",
        "manifold_bench.attacks.gradient:FGSM",
        "--attack",
        "fgsm",
        "--attack",
        "pgd(steps=10)",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " linf, seed 7 (and 2 more jobs): no stored records" in done.stdout
    rows = records(tmp_path / "out")
    assert set(rows["defense"]) == {"tiny:NearestMean"} and set(rows["seed"]) == {7}
    assert set(rows["attack"]) == {"clean", "pgd(steps=10)", "manifold_bench.attacks.gradient:FGSM", "fgsm"}
    assert not rows.duplicated(["sample", "attack", "eps"]).any()
    assert rows.groupby(["attack", "eps"]).size().eq(5).all()
    assert set(rows["sample"]) <= set(records(good[1])["sample"])  # fewer of the same images
    both = [
        rows[rows["attack"] == name].reset_index(drop=True) for name in ("manifold_bench.attacks.gradient:FGSM", "fgsm")
    ]
    same = ["sample", "eps", "adv_label", "success", "linf", "l2", "forwards"]
    pd.testing.assert_frame_equal(both[0][same], both[1][same])


def test_a_dry_run_shows_the_plan_and_writes_nothing(good, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--matrix", str(good[0]), "--dry-run", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "skipped: it makes no sense here" in shown and "passes" in shown
    assert "8 jobs: 6 to run, 0 finished, 2 skipped" in shown
    assert not out.exists()
    assert main(["--matrix", str(good[0]), "--dry-run", "--out", str(good[1])]) == 0
    shown = capsys.readouterr().out
    assert shown.count(" finished\n") == 6 and "8 jobs: 0 to run, 6 finished, 2 skipped" in shown


SEEDS = """
seeds = [0, 4]
datasets = [{ name = "digits", n = 12 }]
defenses = ["tiny:NearestMean", "tiny:Coin"]
[[attacks]]
name = "noise"
eps = [0.3]
draws = 1
"""


def test_seeds_are_a_dimension(tmp_path):
    matrix, out = matrix_file(tmp_path, SEEDS), tmp_path / "out"
    assert bench_run(matrix, out).returncode == 0
    rows = records(out)
    ran = rows.groupby(["defense", "attack"])["seed"].agg(lambda seeds: sorted(set(seeds))).to_dict()
    assert ran == {
        ("tiny:Coin", "clean"): [0, 4],  # its answers are another draw with each
        ("tiny:NearestMean", "clean"): [0],
        ("tiny:Coin", "noise(draws=1)"): [0, 4],
        ("tiny:NearestMean", "noise(draws=1)"): [0, 4],
    }
    mine = rows[(rows["defense"] == "tiny:NearestMean") & (rows["attack"] != "clean")]
    both = [mine.loc[mine["seed"] == seed, "linf"].to_numpy() for seed in (0, 4)]
    assert (both[0] != both[1]).any()
    shown = figures(out)
    assert shown.loc[("tiny:Coin", "noise(draws=1)", 0.3), "seeds"] == 2
    assert 0 <= shown.loc[("tiny:Coin", "noise(draws=1)", 0.3), "robust_sd"] < 1
    assert shown.loc[("tiny:NearestMean", "clean", 0.0), "seeds"] == 1
    assert "±" in (out / "report.md").read_text(encoding="utf-8")
    before = record_files(out)
    done = bench_run(matrix, out, "--seed", 4, "--defense", "tiny:Coin")
    assert done.returncode == 0 and not last_events(out / "log.jsonl", "job started") and record_files(out) == before
    assert set(records(out)["seed"]) == {4}
