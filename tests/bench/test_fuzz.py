"""No matrix file, argument or run folder, however wrong, ends a command with a traceback.

The commands run in this process. The short profile takes seconds; `-m slow` tries 2,000 examples and more.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fuzzing import TEXTS, VALUES, called, changed, check_ended, rewrite, toml_file
from handmade import RUN, StoredJob, cell, run, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifold_bench.bench import baseline, compare
from manifold_bench.bench import list as listing
from manifold_bench.bench import run as running
from manifold_bench.bench.records import measurements
from manifold_bench.bench.records.schema import PROBE
from manifold_bench.bench.records.store import IDENTITY, KERNELS
from manifold_bench.bench.report import __main__ as report
from manifold_bench.bench.report import writing
from manifold_bench.defenses.identity import key_of

SHORT, LONG = 15, int(os.environ.get("FUZZ_EXAMPLES", "700"))
COUNTS = [SHORT, pytest.param(LONG, marks=pytest.mark.slow)]
MATRIX: dict[str, Any] = {
    "seed": 1,
    "draws": 2,
    "calibration": 10,
    "diagnose": False,
    "timeout": 60.0,
    "datasets": [{"name": "digits", "n": 10}],
    "defenses": ["undefended", {"name": "magnet", "label": "m", "datasets": ["digits"]}],
    "attacks": [
        {"name": "pgd", "norm": "linf", "eps": [0.1, 0.2], "steps": 3, "ladder": False},
        {"name": "art:DeepFool", "norm": "l2", "eps": [1.0], "max_iter": 5, "n": 5},
    ],
    "measurements": [{"name": "reconstruction"}],
    "claims": [
        {"source": "s", "text": "t", "figure": "accuracy", "published": 0.9, "dataset": "digits", "defense": "m"}
    ],
    "resources": {"cpus": 1.0},
}
RUN_FILE = RUN | {
    "command": ["manifold-bench", "run", "--matrix", "smoke", "--data", "data"],
    "named": {"defenses": ["d"], "attacks": ["pgd"]},
    "skipped": ["skipped: svhn: no files"],
    "missing_data": {"svhn": "no files"},
    "reused": [{"folder": "baselines/quick", "code": "abc", "started": "2026-01-01", "jobs": 2}],
    "matrix": RUN["matrix"]
    | {
        "defenses": [{"name": "inc", "label": "d", "parameters": {"eta": 3.0}, "draws": 2, "randomized": True}],
        "attacks": [{"name": "pgd", "label": "pgd", "parameters": {"steps": 3}}, {"name": "cw", "label": "cw"}],
        "budget": "fewer images",
    },
}
TEN = list(range(10))
PIXELS = bytes(64)
CELLS = run(
    cell("clean", labels=TEN),
    cell("calibration", labels=TEN, clean_scores=[0.1] * 10),
    cell("pgd", (0.1, 0.2), TEN, adv={0.1: TEN, 0.2: [1] * 10}, images={0: (PIXELS, PIXELS, None)}),
    cell("cw", (1.0,), TEN, norm="l2", status="failed", reason="out of memory"),
    cell(f"{PROBE}pgd", (0.1,), TEN, adv=[1] * 4 + TEN[4:]),
)


def tries(count: int) -> Any:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=count == SHORT,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every kind of file in it."""
    made = write_run(tmp_path_factory.mktemp("fuzz") / "run", CELLS, families={"d": "a family"})
    facts = {"title": "Fréchet distance", "headline": "fid"}
    jobs = [StoredJob({"n": i}, ("digits", "d", label), facts) for i, label in enumerate(("fid", f"{PROBE}planted"))]
    for job in jobs:
        measurements.store(job, made, measurements.Outcome("ok", values={"fid": 1.5}))
    measurements.write_index(jobs, made)
    (made / "run.json").write_text(json.dumps(RUN_FILE))
    return made


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a report's time and sees the same results."""
    monkeypatch.setattr(writing, "write_plots", lambda *_: [])


def judge(folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes of every command that reads run folders, on this one."""
    monkeypatch.setattr(baseline, "BASELINES", folder.parent / "baselines")
    markdown, junit = str(folder.parent / "gate.md"), str(folder.parent / "gate.xml")
    limits = ("--fail-on", "robust_accuracy:2pp", "--fail-on", "seconds:2x")
    ended = [
        called(report.main, str(folder)),
        called(compare.main, str(folder), str(other), *limits, "--markdown", markdown, "--junit", junit),
        called(compare.main, str(other), str(folder)),
        called(baseline.main, str(folder), "--name", "b", "--force"),
    ]
    for end in ended:
        check_ended(end)
        if end.code == 2:
            assert end.err.startswith("error: ") and end.err.count("\n") == 1, end
    return [end.code for end in ended]


def test_the_run_that_is_changed_below_is_sound(folder, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "run")
    assert judge(copy, folder, monkeypatch) == [0, 0, 0, 0]


JSON_FILES = ("run.json", "records/index.json", "measurements/index.json", "measurement")


@pytest.mark.parametrize("count", COUNTS)
def test_changed_json_files_of_a_run(count, folder, monkeypatch):
    @tries(count)
    @given(st.data())
    def check(data):
        name = data.draw(st.sampled_from(JSON_FILES))
        with tempfile.TemporaryDirectory() as place:
            copy = shutil.copytree(folder, Path(place) / "run")
            path = next((copy / "measurements").glob("*--*.json")) if name == "measurement" else copy / name
            content = json.loads(path.read_text())
            content.pop("sha256", None)
            content = data.draw(changed(content))
            if name == "measurement" and isinstance(content, dict):
                try:
                    content["sha256"] = key_of(content)
                except (ValueError, TypeError):
                    return
            path.write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
            judge(copy, folder, monkeypatch)

    check()


OF_KIND = {
    "b": st.booleans(),
    "i": st.integers(-(2**63), 2**63 - 1),
    "f": st.floats(),
    "images": st.one_of(st.none(), st.binary(), st.just(PIXELS)),
    "O": st.one_of(st.none(), TEXTS.map(lambda text: text.encode("utf-8", "ignore").decode())),
}
"""Values of a column by the kind of its type."""


@pytest.mark.parametrize("count", COUNTS)
def test_changed_records_of_a_run(count, folder, monkeypatch):
    """Values, columns and metadata are changed under a checksum that fits."""

    @tries(count)
    @given(st.data())
    def check(data):
        with tempfile.TemporaryDirectory() as place:
            copy = shutil.copytree(folder, Path(place) / "run")
            path = data.draw(st.sampled_from(sorted((copy / "records").glob("*.parquet"))))
            table = pq.read_table(path)
            metadata = dict(table.schema.metadata)
            what = data.draw(st.sampled_from(["value", "column", "identity", "kernels", "rows"]))
            if what == "identity":
                identity = json.loads(metadata[IDENTITY])
                metadata[IDENTITY] = json.dumps(data.draw(changed(identity))).encode("utf-8", "surrogatepass")
            elif what == "kernels":
                metadata[KERNELS] = json.dumps(data.draw(VALUES)).encode("utf-8", "surrogatepass")
            elif what == "rows":
                table = table.slice(0, data.draw(st.integers(0, table.num_rows)))
            elif what == "column":
                table = table.drop_columns([data.draw(st.sampled_from(table.column_names))])
            else:
                frame = table.to_pandas()
                column = data.draw(st.sampled_from(list(frame)))
                row = data.draw(st.integers(0, len(frame) - 1))
                value = data.draw(OF_KIND["images" if column.startswith("image") else frame[column].dtype.kind])
                every = data.draw(st.booleans())
                frame[column] = [value if every or i == row else old for i, old in enumerate(frame[column])]
                try:
                    table = type(table).from_pandas(frame, preserve_index=False)
                except (ValueError, OverflowError, TypeError):
                    return
            kept = {name: value for name, value in metadata.items() if name != b"pandas"}
            rewrite(path, table.replace_schema_metadata({**(table.schema.metadata or {}), **kept}))
            judge(copy, folder, monkeypatch)

    check()


@pytest.mark.parametrize("count", COUNTS)
def test_files_of_a_run_that_are_garbage_folders_or_gone(count, folder, monkeypatch):
    @tries(count)
    @given(st.data())
    def check(data):
        with tempfile.TemporaryDirectory() as place:
            copy = shutil.copytree(folder, Path(place) / "run")
            path = data.draw(st.sampled_from(sorted(p for p in copy.rglob("*") if p.is_file())))
            content = path.read_bytes()
            what = data.draw(st.sampled_from(["cut", "flip", "bytes", "folder", "gone", "nested"]))
            path.unlink()
            if what == "folder":
                path.mkdir()
            elif what == "nested":
                path.write_bytes(b"[" * 100_000)
            elif what != "gone":
                at = data.draw(st.integers(0, len(content) - 1))
                flipped = content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
                path.write_bytes({"cut": content[:at], "flip": flipped, "bytes": data.draw(st.binary())}[what])
            judge(copy, folder, monkeypatch)

    check()


@pytest.mark.parametrize("count", COUNTS)
def test_matrix_files(count, tmp_path):
    file = tmp_path / "m.toml"

    @tries(count)
    @given(st.one_of(changed(MATRIX).map(toml_file), changed(MATRIX).flatmap(changed).map(toml_file), st.text()))
    def check(text):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        check_ended(called(running.main, "--matrix", str(file), "--dry-run", "--out", str(tmp_path / "out")))

    file.write_text(toml_file(MATRIX))
    end = called(running.main, "--matrix", str(file), "--dry-run", "--out", str(tmp_path / "out"))
    assert end.code == 0, end.err
    check()


OPTIONS = (
    "--matrix",
    "--out",
    "--data",
    "--n",
    "--seed",
    "--workers",
    "--device",
    "--defense",
    "--attack",
    "--dataset",
    "--norm",
    "--fail-on",
    "--markdown",
    "--junit",
    "--name",
    "--engine",
    "--address",
    "--quiet",
    "--force",
    "-h",
    "--",
)
WORDS = st.one_of(
    st.sampled_from(OPTIONS),
    st.sampled_from(["smoke", "digits", "pgd", "undefended", "cpu", "linf", "error:5%", "local", "a:B", "os:path"]),
    st.sampled_from(["9" * 6000, str(2**63), "-1", "x" * 5000, "a\0b", "\x1b[2J", "", ".", "/", "é" * 300]),
    st.integers().map(str),
    TEXTS.filter(lambda text: "://" not in text),
)


@pytest.mark.parametrize("count", COUNTS)
def test_arguments(count, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(baseline, "BASELINES", tmp_path / "baselines")
    run_folder = str(shutil.copytree(folder, tmp_path / "run"))
    commands = {
        "run": (running.main, ["--dry-run", "--matrix", "smoke"]),
        "report": (report.main, []),
        "compare": (compare.main, [run_folder]),
        "baseline": (baseline.main, [run_folder]),
        "list": (listing.main, []),
    }

    @tries(count)
    @given(st.sampled_from(sorted(commands)), st.lists(WORDS, max_size=4))
    def check(command, words):
        main, first = commands[command]
        check_ended(called(main, *first, *words))

    check()
