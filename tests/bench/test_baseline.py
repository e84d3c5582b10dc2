"""A run becomes a baseline whole, readable and without pictures, or not at all."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from handmade import RUN, StoredJob, cell, run, write_run

from manifold_bench.bench import compare
from manifold_bench.bench.baseline import main
from manifold_bench.bench.records import measurements
from manifold_bench.bench.records.measurements import Outcome
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import IMAGE_COLUMNS

N = 20
CLEAN = cell("clean", labels=[0] * N)
PIXELS = np.zeros(64, dtype=np.uint8).tobytes()
FAILED = cell("b", labels=[0] * N, status="failed", reason="out of memory")


def attacked(beaten: int) -> pd.DataFrame:
    """An attack that beats the first `beaten` of N inputs, with pictures of one."""
    adv = [1] * beaten + [0] * (N - beaten)
    return cell("a", labels=[0] * N, adv=adv, images={0: (PIXELS, PIXELS, PIXELS)})


def finished_run(folder: Path, *cells: pd.DataFrame, finished: bool = True) -> Path:
    write_run(folder, run(*cells))
    expected = RUN | {"finished": finished, "code": "0123456789" * 4, "started": "2026-01-02T03:04:05Z"}
    (folder / "run.json").write_text(json.dumps(expected), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The current folder, where results/baselines is."""
    monkeypatch.setenv("COLUMNS", "300")  # lines that are as long as they are
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_baseline_compares_as_the_run_and_has_no_pictures(here, capsys):
    made = finished_run(here / "mine", CLEAN, attacked(3))
    assert main([str(made)]) == 0
    (expected,) = capsys.readouterr().out.splitlines()
    assert expected.startswith("results/baselines/mine: 2 cells, ")
    assert expected.endswith(" KiB, code 0123456789, 2026-01-02")
    baseline = here / "results" / "baselines" / "mine"
    assert not set(IMAGE_COLUMNS) & set(Results.load(baseline).records)
    assert {path.name for path in baseline.iterdir()} == {"records", "run.json", "summary.csv"}
    assert pd.read_csv(baseline / "summary.csv").set_index("attack").loc["a", "robust_accuracy"] == 0.85
    assert compare.main([str(baseline), str(made)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "PASS: 2 = (no difference)"


def test_a_baseline_has_the_measurements_without_their_pictures(here):
    facts = {"title": "samples", "headline": "accepted"}
    job = StoredJob({}, ("data", "defense", "samples"), facts)
    made = finished_run(here / "mine", CLEAN, attacked(3))
    measurements.store(job, made, Outcome("ok", values={"accepted": 0.5}, pictures=torch.zeros(1, 2, 1, 4, 4)))
    measurements.write_index([job], made)
    assert main([str(made)]) == 0
    (expected,), (found,) = Results.load(made).measurements, Results.load(Path("results/baselines/mine")).measurements
    assert expected.pop("pictures") and found == expected


def test_it_says_what_it_replaces(here, capsys):
    assert main([str(finished_run(here / "old", CLEAN, attacked(0))), "--name", "gate"]) == 0
    capsys.readouterr()
    new = finished_run(here / "new", CLEAN, attacked(10), cell("c", labels=[0] * N))
    assert main([str(new), "--name", "gate"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "replaces the baseline of code 0123456789, 2026-01-02: 1 - (worse), 1 = (no difference); 1 cells are new"
    )
    baselines = here / "results" / "baselines"
    assert [path.name for path in baselines.iterdir()] == ["gate"]  # neither drafts nor the old one
    assert len(Results.load(baselines / "gate").identities) == 3


@pytest.mark.parametrize(
    ("cells", "finished", "expected"),
    [
        ((CLEAN, FAILED), True, "1 of its cells failed, the first one is digits / d / b L∞ ε = 0.1: out of memory"),
        ((CLEAN,), False, "the run is not finished"),
        ((CLEAN,), None, "run.json is missing, so the run may be unfinished"),
    ],
)
def test_half_a_run_is_promoted_only_where_that_is_said(here, capsys, cells, finished, expected):
    made = finished_run(here / "mine", *cells, finished=bool(finished))
    if finished is None:
        (made / "run.json").unlink()
    assert main([str(made)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {made}: {expected}; ")
    assert message.count("\n") == 1
    assert not (here / "results").exists()
    assert main([str(made), "--force"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"promoted nevertheless: {expected}"


def test_a_job_that_left_no_records_is_noticed(here, capsys):
    made = finished_run(here / "mine", CLEAN, attacked(3))
    files = [path.name for path in (made / "records").glob("*.parquet")]
    index = {"jobs": [{"file": name} for name in (*files, "gone.parquet")]}
    (made / "records" / "index.json").write_text(json.dumps(index), encoding="utf-8")
    assert main([str(made)]) == 2
    assert "1 of its jobs have no records, the first one is gone.parquet" in capsys.readouterr().err


def test_what_cannot_be_a_baseline_is_refused_and_leaves_the_old_one(here, capsys):
    baseline = here / "results" / "baselines" / "gate"
    assert main([str(finished_run(here / "gate", CLEAN)), "--force"]) == 0
    before = sorted(baseline.rglob("*"))
    damaged = finished_run(here / "damaged", CLEAN)
    record = next((damaged / "records").glob("*.parquet"))
    record.write_bytes(record.read_bytes()[:-9])
    empty = finished_run(here / "empty", FAILED)
    (here / "results" / "baselines" / "notes").mkdir()
    for arguments, expected in [
        ([str(damaged), "--name", "gate"], "damaged"),
        ([str(empty), "--name", "gate", "--force"], "no cell has results"),
        ([str(baseline)], "is the baseline itself"),
        ([str(here / "gate"), "--name", "../up"], "--name: '../up' is no name of a baseline"),
        ([str(here / "gate"), "--name", "notes"], "exists and is not a baseline"),
        ([str(here / "nowhere")], "no records here"),
    ]:
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and expected in message and message.count("\n") == 1
    assert sorted(baseline.rglob("*")) == before
