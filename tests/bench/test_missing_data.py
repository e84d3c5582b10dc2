"""A run of several data sets skips those whose files are not found, and says so wherever its results are shown."""

from __future__ import annotations

import pytest
from commands import matrix_file

from manifold_bench.bench import run
from manifold_bench.bench.records import measurements
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.report import results as shown

ABSENT = {"coil100": "coil100_32.npz", "svhn": "test_32x32.mat"}
"""Data sets that need files → one of these."""

MATRIX = """
datasets = [{ name = "digits", n = 6 }, { name = "coil100", n = 4 }, { name = "svhn", n = 4 }]
defenses = ["tiny:NearestMean", { name = "undefended", label = "colour", datasets = ["coil100", "svhn"] }]
[[attacks]]
name = "fgsm"
eps = [0.3]
[[measurements]]
name = "reconstruction"
[[claims]]
text = "It is right."
source = "table 1"
figure = "accuracy"
dataset = "coil100"
defense = "colour"
published = 0.9
"""


@pytest.fixture
def command(tmp_path, capsys):
    """A function that runs a matrix with an empty data folder, and returns the exit code, its output and its errors."""
    (tmp_path / "data").mkdir()

    def run_matrix(text: str, *arguments: str, data: bool = True) -> tuple[int, str, str]:
        given = ["--matrix", matrix_file(tmp_path, text), "--out", tmp_path / "out", "--workers", "0", *arguments]
        code = run.main([*map(str, given), *(["--data", str(tmp_path / "data")] if data else [])])
        return code, *capsys.readouterr()

    return run_matrix


def named(text: str) -> list[str]:
    """The lines on skipped data sets."""
    return [line for line in text.replace("&#39;", "'").splitlines() if "skipped: data set '" in line]


def test_what_is_there_runs_and_what_is_not_is_named(tmp_path, command):
    code, screen, errors = command(MATRIX)
    assert code == 0, errors
    out = tmp_path / "out"
    found = Results.load(out)
    assert set(found.records["dataset"]) == {"digits"} and (found.records["status"] == "ok").all()
    assert {one["dataset"] for one in measurements.load(out)} == {"digits"}
    assert list(found.run["missing_data"]) == list(ABSENT)
    pages = ((out / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    for text in (screen, *pages, "\n".join(shown.load(out).notes)):
        assert len(named(text)) == len(ABSENT)
        for line, (name, file) in zip(named(text), ABSENT.items(), strict=True):
            assert f"'{name}'" in line and file in line and "docs/data.md" in line
    assert "coil100, svhn" in screen.splitlines()[-1]
    assert not (out / "finished.json").exists()  # the next run has to look for the data again


@pytest.mark.parametrize("data", [True, False])
def test_a_dry_run_names_it_too(command, data):
    code, screen, errors = command(MATRIX, "--dry-run", data=data)
    assert code == 0, errors
    assert [line.split("'")[1] for line in named(screen)] == list(ABSENT)


@pytest.mark.parametrize(
    ("datasets", "arguments"),
    [
        ('["digits", "coil100"]', ["--dataset", "coil100"]),
        ('["digits", "coil100"]', ["--dataset", "digits", "--dataset", "coil100"]),
        ('["coil100"]', []),
        ('["coil100", "svhn"]', []),
    ],
)
def test_a_named_data_set_is_required_and_so_is_one_at_all(tmp_path, command, datasets, arguments):
    text = f'datasets = {datasets}\ndefenses = ["undefended"]\n[[attacks]]\nname = "fgsm"\neps = [0.3]\n'
    code, _, errors = command(text, *arguments)
    assert code == 2 and "'coil100'" in errors and not (tmp_path / "out" / "records").exists()


def test_damaged_data_are_not_missing(tmp_path, command):
    (tmp_path / "data" / "coil100_32.npz").write_bytes(b"no archive")
    code, _, errors = command(MATRIX)
    assert code == 2 and "damaged" in errors
