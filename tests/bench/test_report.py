"""A report is rebuilt from the records alone."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from handmade import REJECT, cell, run, write_run

import manifold_bench as mb
from manifold_bench.bench import compare
from manifold_bench.bench.metrics.summary import SUMMARY_COLUMNS
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import CALIBRATION, CLEAN
from manifold_bench.bench.report import writing
from manifold_bench.bench.report.__main__ import main
from manifold_bench.bench.report.writing import write_report

PAGES = ("report.md", "report.html")
PIXELS = np.zeros(64, dtype=np.uint8).tobytes()
CELLS = (
    cell(CLEAN, labels=[0] * 20, clean_scores=[-1] * 20),
    cell(CALIBRATION, labels=[0] * 20, clean_scores=[-1] * 20, images={0: (PIXELS, PIXELS, PIXELS)}),
    cell(
        "pgd",
        (0.1, 0.2),
        [0] * 20,
        adv=[1] * 9 + [0] * 11,
        clean_scores=[-1] * 20,
        images={0: (PIXELS, PIXELS, PIXELS)},
    ),
    cell("cw", (0.5,), [0] * 20, norm="l2", status="failed", reason="out of memory"),
    cell("fool", labels=[-1] * 4, aims=[0, 1] * 2, samples=[0, 0, 1, 1], adv=[1, REJECT, 0, 1], norm="fooling"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "run", run(*CELLS))
    (folder / "plots").mkdir()
    (folder / "plots" / "gone.png").touch()
    write_report(Results.load(folder))
    return folder


def test_all_of_it_is_written(folder):
    files = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "records" not in str(path)
    }
    assert files == {
        "summary.csv",
        "report.md",
        "report.html",
        "diagnosis.json",
        *(f"tables/digits--diagnosis--{kind}.{ending}" for kind in ("results", "evidence") for ending in ("md", "tex")),
        *(
            f"tables/digits--{norm}--{kind}.{ending}"
            for norm in ("linf", "l2")
            for kind in ("robustness", "attacks", "selective")
            for ending in ("md", "tex")
        ),
        "tables/digits--fooling--accepted.md",
        "tables/digits--fooling--accepted.tex",
        *(
            f"plots/digits--{name}.svg"
            for name in (
                *(f"{norm}--{kind}" for norm in ("linf", "l2") for kind in ("curves", "heatmap", "risk-coverage")),
                "images--1",
            )
            for ending in ("svg", "png")
        ),
    }


def test_summary_csv_reads_back(folder):
    table = pd.read_csv(folder / "summary.csv")
    assert tuple(table.columns) == SUMMARY_COLUMNS
    robust = table.set_index(["attack", "norm", "eps"])["robust_accuracy"]
    assert robust["pgd", "linf", 0.2] == robust["worst-case", "linf", 0.2] == 0.55
    assert np.isnan(robust["cw", "l2", 0.5])


def test_the_page_links_plots_that_exist_and_explains_failures(folder):
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "5 jobs: 4 ok, 1 failed, 0 skipped" in page
    assert "no threshold at 1 %: 20 calibration records are too few" in page
    assert "share of noise images accepted" in page
    assert "failed: out of memory" in page
    links = [line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert len(links) == 7
    assert all((folder / link).is_file() for link in links)


def test_the_command_prints_the_tables(folder, capsys, monkeypatch):
    monkeypatch.setattr(writing, "write_plots", lambda *_: [])
    assert main([str(folder)]) == 0
    assert "worst case over attacks" in capsys.readouterr().out


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.touch()])
def test_no_records_is_one_line_and_exit_code_2(tmp_path, capsys, make):
    make(tmp_path / "run")
    assert main([str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert str(tmp_path / "run") in message
    assert message.count("\n") == 1


def test_a_damaged_file_is_named(tmp_path, capsys):
    write_run(tmp_path, run(*CELLS))
    damaged = next((tmp_path / "records").glob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-10])
    assert main([str(tmp_path)]) == 2
    assert damaged.name in capsys.readouterr().err


def test_a_job_without_records_is_named_wherever_its_figures_are_missing(tmp_path, capsys):
    stored = write_run(tmp_path, run(*CELLS), {"d": "none"})
    gone = next((stored / "records").glob("*--pgd--*.parquet"))
    gone.unlink()
    assert main([str(stored)]) == 0
    pages = [capsys.readouterr().out, *((stored / name).read_text(encoding="utf-8") for name in PAGES)]
    assert all(gone.name in "".join(page.split()) for page in pages)
    assert gone.name in mb.load(stored).notes[-1]


def test_stored_runs_compare(folder, tmp_path, capsys):
    assert compare.main([str(folder), str(folder)]) == 0
    worse = write_run(tmp_path, run(*CELLS[:2], cell("pgd", (0.1, 0.2), [0] * 20, adv=[1] * 20), *CELLS[3:]))
    assert compare.main([str(folder), str(worse)]) == 1
    assert "2 - (worse)" in capsys.readouterr().out.splitlines()[-1]


def test_a_report_is_written_without_torch_and_statistics_packages():
    module = "manifold_bench.bench.report"
    code = (
        f"import sys, {module}.screen, {module}.writing; "
        "print([m for m in ('scipy', 'statsmodels', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "module",
    [
        "manifold_bench.bench.report.__main__",
        "manifold_bench.bench.compare",
        "manifold_bench.bench.metrics.robustness",
        "manifold_bench.bench.report.tables",
    ],
)
def test_nothing_heavy_is_imported_to_say_how_it_is_used(module):
    code = f"import sys, {module}; print([m for m in ('matplotlib', 'statsmodels', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
