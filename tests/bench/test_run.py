"""`manifold-bench run` as a user meets it: what it writes, what it refuses, and what bad systems cost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from commands import bench_run, environment, figures, one_error_line, record_files, records

from manifold_bench.bench.list import main as list_systems
from manifold_bench.bench.metrics.robustness import SUMMARY_COLUMNS
from manifold_bench.bench.records.log import Log
from manifold_bench.bench.run import main
from manifold_bench.bench.running.stamp import STAMP

GOOD = """
datasets = [{ name = "digits", n = 12 }]
defenses = ["tiny:NearestMean", { name = "tiny:Coin", label = "coin" }]
draws = 3

[[attacks]]
name = "noise"
eps = [0.1, 0.3]
draws = 2

[[attacks]]
name = "pgd"
eps = [0.3, 0.1]
steps = 10

[[attacks]]
label = "unsuited"
name = "tiny:Unsuited"
eps = [0.1]
"""

BAD_ATTACKS = (
    "Raises",
    "OutsideBall",
    "OutsideBox",
    "NanPixels",
    "WrongShape",
    "NoTensor",
    "InPlace",
    "Vandal",
    "Kills",
)
TROUBLE = """
datasets = [{ name = "digits", n = 12 }]
defenses = ["tiny:NearestMean", "tiny:NanLogits", "tiny:NanWhereAttacked", "tiny:TooManyOutputs", "tiny:TooFewOutputs",
            "tiny:Dies"]
[[attacks]]
name = "tiny:Slow"
eps = [0.1, 0.3]
""" + "".join(f'[[attacks]]\nname = "tiny:{name}"\neps = [0.1, 0.3]\n' for name in BAD_ATTACKS)

RETRY = """
timeout = 15
datasets = [{ name = "digits", n = 12 }]
defenses = ["tiny:NearestMean", "tiny:Hangs"]
[[attacks]]
name = "tiny:Slow"
eps = [0.1, 0.3]
[[attacks]]
name = "tiny:Raises"
eps = [0.1, 0.3]
"""

SLOW = """
datasets = [{ name = "digits", n = 12 }]
defenses = ["tiny:NearestMean"]
""" + "".join(f'[[attacks]]\nname = "tiny:Slow"\nnumber = {i}\neps = [0.1]\n' for i in range(6))


def matrix_file(folder: Path, text: str) -> Path:
    path = folder / "matrix.toml"
    path.write_text(text, encoding="utf-8")
    return path


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
    assert "worst case over attacks" in done.stdout and "6 jobs (0 failed), 2 skipped" in done.stdout

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

    told = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert told["finished"] is True and told["seeds"] == [0] and told["draws"] == 3 and told["workers"] == 2
    assert told["matrix"]["source"] == str(matrix) and told["matrix"]["datasets"] == [{"name": "digits", "n": 12}]
    assert {"code", "python", "packages", "machine", "wall_seconds", "started", "device", "jobs"} <= told.keys()
    assert len(told["jobs"]) == 8
    assert 2**26 < told["peak_memory"]["process"] < told["peak_memory"]["run"]  # torch alone takes more

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
        "started": 6, "finished": 6, "skipped": 2,
    }  # fmt: skip
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
    (line,) = done.stdout.splitlines()
    assert line.startswith("3 jobs (0 failed), 1 skipped") and (tmp_path / "out" / "report.md").exists()


def test_records_say_how_they_came_about(good):
    rows = records(good[1])
    assert set(rows["protocol"][rows["defense"] == "coin"]) == {"worst-of-3"}
    assert set(rows["protocol"][rows["defense"] != "coin"]) == {"deterministic"}
    assert rows.groupby("key").size().isin((12, 24)).all()
    assert (rows["reason"] == "").eq(rows["status"] == "ok").all()


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
        good[0], tmp_path / "out", "--n", 5, "--seed", 7, "--defense", "tiny:NearestMean", "--attack", "pgd",
        "--attack", "manifold_bench.attacks.gradient:FGSM", "--attack", "fgsm", "--attack", "pgd(steps=10)",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " linf, seed 7 (and 3 more jobs): no stored records" in done.stdout
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
    assert "skipped: it makes no sense here" in shown and "6 jobs, 2 skipped" in shown and "passes" in shown
    assert not out.exists()
    assert main(["--matrix", str(good[0]), "--dry-run", "--out", str(good[1])]) == 0
    shown = capsys.readouterr().out
    assert shown.count("finished") == 6 and "to run" not in shown


def test_list_names_everything(capsys):
    assert list_systems([]) == 0
    shown = capsys.readouterr().out
    for name in (
        "digits",
        "mnist5k",
        "undefended",
        "gmvae",
        "pgd",
        "art:ClassName",
        "foolbox:ClassName",
        "smoke",
        "quick",
    ):
        assert f"\n  {name}" in shown


@pytest.mark.parametrize(
    "option", [["--nonsense"], ["--n", "0"], ["--n", "many"], ["--workers", "-1"], ["--seed", "-1"]]
)
def test_an_option_that_cannot_be_is_refused(option, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--matrix", "smoke", *option])
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "--matrix"),
        (["--matrix", "smok"], "did you mean 'smoke'"),
        (["--matrix", "{tmp}/absent.toml"], "no such file"),
        (["--matrix", "{tmp}"], "no such file"),
        (["--matrix", "{broken}"], "not valid TOML"),
        (["--defense", "undefnded"], "did you mean 'undefended'"),
        (["--attack", "pdg"], "did you mean 'pgd'"),
        (["--dataset", "digit"], "did you mean 'digits'"),
        (["--defense", ""], "unknown defense ''"),
        (["--attack", ""], "unknown attack ''"),
        (["--dataset", ""], "unknown data set ''"),
        (["--defense", "no.such:Thing"], "cannot import 'no.such'"),
        (["--attack", "tiny:Nothing"], "has no 'Nothing'"),
        (["--attack", "art"], "art:ClassName"),
        (["--n", "100000"], "500 test images"),
        (["--data", "{tmp}/absent"], "is not a folder"),
        (["--data", "{broken}"], "is not a folder"),
        (["--device", "nonsense"], "--device: 'nonsense'"),
        (["--device", "cuda:99"], "--device: 'cuda:99'"),
        (["--device", "meta"], "--device: 'meta'"),
        (["--device", ""], "--device: ''"),
        (["--out", "{broken}"], "--out"),
        (["--out", "{broken}/below"], "--out"),
        (["--matrix", "{unrestricted}", "--attack", "fgsm"], "fgsm"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, hint, good, tmp_path, capsys):
    places = {
        "tmp": str(tmp_path),
        "broken": str(tmp_path / "broken.toml"),
        "unrestricted": str(tmp_path / "free.toml"),
    }
    Path(places["broken"]).write_text("datasets = [", encoding="utf-8")
    Path(places["unrestricted"]).write_text(
        'datasets = ["digits"]\ndefenses = ["tiny:NearestMean"]\n[[attacks]]\nname = "noise"\nnorm = "unrestricted"\n',
        encoding="utf-8",
    )
    given = [argument.format(**places) for argument in arguments]
    if given and "--matrix" not in given:
        given += ["--matrix", str(good[0])]
    if given and "--out" not in given:
        given += ["--out", str(tmp_path / "out")]
    assert main(given) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and hint in message
    assert not (tmp_path / "out").exists()


def test_bad_input_shows_no_traceback(tmp_path):
    matrix = matrix_file(tmp_path, GOOD.replace("0.3", "-0.3"))
    message = one_error_line(bench_run(matrix, tmp_path / "out"))
    assert str(matrix) in message and "eps" in message and "-0.3" in message


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
    assert "2 of 2 jobs are finished already" in done.stdout and record_files(out) == before
    assert set(records(out)["seed"]) == {4}


@pytest.fixture(scope="module")
def trouble(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trouble")
    done = bench_run(matrix_file(folder, TROUBLE), folder / "out")
    return folder, done, figures(folder / "out")


def test_bad_systems_cost_their_own_cells_and_nothing_else(trouble):
    _, done, shown = trouble
    assert done.returncode == 1, done.stderr
    assert done.stderr == "" and "Traceback" not in done.stdout
    for cell in [("clean", 0.0), ("tiny:Slow", 0.1), ("tiny:Slow", 0.3)]:
        assert shown.loc[("tiny:NearestMean", *cell), "status"] == "ok"


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("Raises", "ArithmeticError: out of luck"),
        ("WrongShape", "returned shape (1, 1, 8, 8)"),
        ("NoTensor", "returned NoneType"),
        ("Kills", "its process died"),
        ("Vandal", "changed the defense"),
    ],
)
def test_an_attack_that_breaks_is_a_failed_cell_with_its_reason(trouble, attack, reason):
    for eps in (0.1, 0.3):
        row = trouble[2].loc[("tiny:NearestMean", f"tiny:{attack}", eps)]
        assert row["status"] == "failed" and reason in row["reason"] and "\n" not in row["reason"]
        assert pd.isna(row["robust_accuracy"]) and pd.isna(row["accuracy"])


@pytest.mark.parametrize("attack", ["OutsideBall", "OutsideBox", "NanPixels", "InPlace"])
def test_outputs_that_break_the_rules_are_counted_and_are_no_success(trouble, attack):
    for eps in (0.1, 0.3):
        row = trouble[2].loc[("tiny:NearestMean", f"tiny:{attack}", eps)]
        assert row["status"] == "ok" and row["valid"] == 0 and row["robust_accuracy"] == row["accuracy"] == 1
    rows = records(trouble[0] / "out")
    mine = rows[(rows["attack"] == f"tiny:{attack}") & (rows["defense"] == "tiny:NearestMean")]
    assert not mine["valid"].any() and not mine["success"].any() and mine["distance"].eq(float("inf")).all()


@pytest.mark.parametrize(
    ("defense", "reason"),
    [
        ("NanLogits", "NaN"),
        ("TooManyOutputs", "TooManyOutputs.forward returned"),
        ("TooFewOutputs", "TooFewOutputs.forward returned"),
        ("Dies", "its process died"),
    ],
)
def test_a_defense_that_gives_no_answer_is_failed_in_every_cell(trouble, defense, reason):
    mine = trouble[2].loc[f"tiny:{defense}"]
    assert set(mine["status"]) == {"failed"} and mine["robust_accuracy"].isna().all() and mine["rejection"].isna().all()
    assert mine["reason"].str.contains(reason, regex=False).all()


def test_a_defense_that_gives_no_answer_under_attack_is_not_robust(trouble):
    mine = trouble[2].loc["tiny:NanWhereAttacked"]
    assert mine.loc[("clean", 0.0), "accuracy"] == 1
    assert mine.loc["tiny:Slow", "status"].eq("failed").all() and mine.loc["tiny:Slow", "robust_accuracy"].isna().all()


def test_the_next_run_tries_failed_cells_again_and_a_hang_costs_its_cell(trouble):
    folder = trouble[0]
    before = record_files(folder / "out")
    done = bench_run(matrix_file(folder, RETRY), folder / "out", TINY_MENDED="1")
    assert done.returncode == 1, done.stderr
    shown = figures(folder / "out")
    assert shown.loc[("tiny:NearestMean", "tiny:Raises", 0.3), "status"] == "ok"
    assert set(shown.loc["tiny:Hangs", "status"]) == {"failed"}
    assert "more than 15 s" in shown.loc[("tiny:Hangs", "clean", 0.0), "reason"]
    after = record_files(folder / "out")
    changed = {name for name in before if after[name] != before[name]}
    assert changed and all("tiny_NearestMean--tiny_Raises" in name for name in changed)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_resumes_to_the_same_records(tmp_path):
    matrix, out = matrix_file(tmp_path, SLOW), tmp_path / "out"
    arguments = [
        sys.executable,
        "-m",
        "manifold_bench.bench",
        "run",
        "--matrix",
        str(matrix),
        "--out",
        str(out),
        "--workers",
        "2",
    ]
    killed = subprocess.Popen(
        arguments, env=environment(tmp_path / "cache", TINY_SECONDS="1.5"), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: list((out / "records").glob("*Slow*.parquet")))
    workers = children(killed.pid)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert workers
    until(lambda: not any(alive(pid) for pid in workers))

    finished = {
        name: stat
        for name, stat in record_files(out).items()
        if (out / "records" / name).with_suffix(".parquet").exists()
    }
    assert len([name for name in finished if "Slow" in name and name.endswith(".parquet")]) < 6
    (out / "records" / ".digits--half--written.parquet.1.tmp").write_bytes(b"PAR1 half")
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["finished"] is False

    assert bench_run(matrix, out).returncode == 0
    assert finished.items() <= record_files(out).items()
    whole = bench_run(matrix, tmp_path / "whole")
    assert whole.returncode == 0
    pd.testing.assert_frame_equal(records(out), records(tmp_path / "whole"))
    assert set(record_files(out)) == set(record_files(tmp_path / "whole"))


def until(condition, seconds: float = 60) -> None:
    """Waits for it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(folder.name))
        except OSError:  # gone meanwhile
            continue
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
