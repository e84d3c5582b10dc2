"""A run's folder is read once, by whatever shows, compares or gates it, and nothing that it names is imported."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from handmade import RUN, StoredJob, a_run, cell, identities, run, write_run

from manifold_bench.bench import baseline, compare
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.records import measurements
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import PROBE
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.report import __main__ as report
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.html.cells import Cells, heat_map
from manifold_bench.bench.report.html.page import leaderboard
from manifold_bench.bench.report.tables import panels
from manifold_bench.bench.report.writing import write_report

TEN = [0] * 10
CELLS = run(
    cell("clean", labels=TEN),
    cell("pgd", (0.1, 0.2), TEN, adv=[1] * 4 + [0] * 6),
    cell(f"{PROBE}pgd", (0.1,), TEN, adv=[1] * 4 + [0] * 6),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with records, probes, a measurement, an inspection, an index and run.json."""
    folder = write_run(tmp_path / "run", CELLS, families={"d": "a family"})
    facts = {"title": "Fréchet distance", "headline": "fid"}
    jobs = [StoredJob({"n": i}, ("digits", "d", label), facts) for i, label in enumerate(("fid", f"{PROBE}other"))]
    for job in jobs:
        measurements.store(job, folder, measurements.Outcome("ok", values={"fid": 1.5}))
    measurements.write_index(jobs, folder)
    (folder / "run.json").write_text(json.dumps(RUN))
    return folder


def test_everything_is_there_and_probes_stand_apart(folder):
    results = Results.load(folder)
    assert set(results.records["attack"]) == {"clean", "pgd"} and set(results.probes["attack"]) == {f"{PROBE}pgd"}
    assert set(results.records["key"]) | set(results.probes["key"]) == set(results.identities) == set(results.index)
    assert [one["measurement"] for one in results.measurements] == ["fid"]
    assert [one["measurement"] for one in results.inspections] == [f"{PROBE}other"]
    assert {entry.family for entry in results.index.values()} == {"a family"}
    assert results.run == RUN and results.missing == []
    next((folder / "records").glob("*--pgd--*.parquet")).unlink()
    assert len(Results.load(folder).missing) == 1


def test_a_report_opens_each_file_of_a_run_once(folder, monkeypatch):
    stored = {path for path in folder.rglob("*") if path.is_file()}
    opened: Counter[Path] = Counter()

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str) and Path(arguments[0]) in stored:
            opened[Path(arguments[0])] += 1

    watching = True
    sys.addaudithook(watch)
    write_report(Results.load(folder))
    watching = False
    assert opened == dict.fromkeys(stored, 1)


def test_a_folder_without_records_or_with_a_damaged_index_is_bad_input(folder, tmp_path):
    with pytest.raises(InputError, match="no records here"):
        Results.load(tmp_path / "nowhere")
    for index in ("{", "[]", '{"jobs": 3}', '{"jobs": [{"file": 3}]}', '{"jobs": [{"file": "a", "unheard": 1}]}'):
        (folder / "records" / "index.json").write_text(index)
        with pytest.raises(InputError, match=r"index\.json: damaged"):
            Results.load(folder)


def test_no_code_that_a_received_folder_names_is_imported(tmp_path, monkeypatch):
    mark = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Module: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "received"
    for key, rows in CELLS.groupby("key"):
        identity = identities(CELLS)[str(key)]
        for part in ("dataset", "defense", "attack"):
            identity[part]["name"] = "evil:Module"
        Store(folder).write(StoredJob(identity, ("digits", "d", rows["attack"].iloc[0], "linf")), rows)
    (folder / "run.json").write_text(json.dumps(RUN | {"named": {"defenses": ["d"]}}))
    assert report.main([str(folder)]) == 0
    assert compare.main([str(folder), str(folder)]) == 0
    assert baseline.main([str(folder), "--name", "mine"]) == 0
    assert not mark.exists() and "evil" not in sys.modules


def rows_filtered(jobs: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of rows, with repetition, that tables are filtered for while the report of so many jobs is computed."""
    labels = [0] * 4
    defenses = [f"d{i}" for i in range(jobs // 5)]
    cells = [cell("clean", labels=labels, defense=name) for name in defenses]
    cells += [cell(f"a{i}", (0.1, 0.2), labels, adv=[1, 0, 0, 0], defense=name) for name in defenses for i in range(4)]
    results, select, count = a_run(run(*cells)), pd.DataFrame.__getitem__, 0

    def counted(frame: pd.DataFrame, key: object) -> object:
        nonlocal count
        count += len(frame) * (isinstance(key, pd.Series) and key.dtype == bool)
        return select(frame, key)

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "__getitem__", counted)
        report = Report(results)
        heat_maps = [heat_map(panel, Cells(report)) for panel in panels(report.summary)]
        leaderboard(report)
    assert len(heat_maps) == 1
    return count


def test_the_work_of_a_report_grows_as_its_jobs_do(monkeypatch):
    few, many = (rows_filtered(jobs, monkeypatch) for jobs in (20, 80))
    assert many < 5 * few
