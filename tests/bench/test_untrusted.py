"""Cases of bad input that once ended in a traceback or a wrong figure: each is one line that names what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import Ended, called
from handmade import RUN, StoredJob, cell, run, write_run

from manifold_bench.bench import baseline, compare
from manifold_bench.bench import list as listing
from manifold_bench.bench import run as running
from manifold_bench.bench.records import measurements
from manifold_bench.bench.report import __main__ as report

MATRIX = 'datasets = ["digits"]\ndefenses = ["undefended"]\n[[attacks]]\nname = "pgd"\neps = [0.1]\n'


def refused(end: Ended, *parts: str) -> None:
    """The command ended with exit code 2 and one line that holds these parts."""
    assert end.code == 2, end
    line = end.err.rstrip("\n").split("\n")[-1]
    assert "error: " in line and all(part in line for part in parts), (parts, line)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a = " + "[" * 20_000 + "]" * 20_000, ["m.toml", "nested"]),
        ("a = " + "{b=" * 20_000 + "1" + "}" * 20_000, ["m.toml", "nested"]),
        ("seed = " + "9" * 6000 + "\n" + MATRIX, ["m.toml: seed: 999", "whole number"]),
        (f"seed = {2**63}\n{MATRIX}", ["m.toml: seed", "2^63"]),
        (f"seeds = [0, {2**64}]\n{MATRIX}", ["m.toml: seeds[1]", "2^63"]),
        (f"{MATRIX}steps = {10**30}\n", ["m.toml: attacks[0].steps", "2^63"]),
        (MATRIX.replace('"undefended"', '{ name = "undefended", label = "a\\u0000b" }'), ["defenses[0]", "control"]),
        (MATRIX.replace('"digits"', '"' + "x" * 10_000 + '"'), ["datasets[0]"]),
        (MATRIX.replace('"undefended"', '"a\\u0000b:C"'), ["defenses[0]"]),
    ],
    ids=str,
)
def test_a_matrix_that_no_reader_survives(tmp_path, text, parts):
    file = tmp_path / "m.toml"
    file.write_text(text, encoding="utf-8")
    refused(called(running.main, "--matrix", str(file), "--dry-run"), *parts)


@pytest.mark.parametrize(
    ("main", "arguments", "part"),
    [
        (running.main, ["--matrix", "smoke", "--seed", str(2**63)], "--seed"),
        (running.main, ["--matrix", "smoke", "--seed", "9" * 6000], "--seed"),
        (running.main, ["--matrix", "smoke", "--n", str(2**63)], "--n"),
        (running.main, ["--matrix", "a\0b"], "NUL"),
        (running.main, ["--matrix", "smoke", "--out", "a\0b"], "NUL"),
        (report.main, ["a\0b"], "NUL"),
        (compare.main, ["a\0b", "c"], "NUL"),
        (running.main, ["--matrix", "smoke", "--out", ""], "--out: is empty"),
        (running.main, ["--matrix="], "--matrix: is empty"),
        (running.main, ["--matrix", "smoke", "--data="], "--data: is empty"),
        (report.main, [""], "an argument is empty"),
        (compare.main, ["c", ""], "an argument is empty"),
        (listing.main, ["more"], "more"),
    ],
)
def test_arguments_that_no_system_takes(main, arguments, part):
    refused(called(main, *arguments), part)


@pytest.mark.parametrize("main", [report.main, lambda given: compare.main([*given, *given])])
def test_a_path_that_is_too_long_is_one_line(main):
    end = called(main, "x/" * 5000)
    assert end.code in (1, 2) and end.err.startswith("error: ") and end.err.count("\n") == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_run(tmp_path / "run", run(cell("clean"), cell("a")), families={"d": "any"})
    job = StoredJob({}, ("digits", "d", "fid"), {"title": "t", "headline": "fid"})
    measurements.store(job, made, measurements.Outcome("ok", values={"fid": 1.5}))
    measurements.write_index([job], made)
    (made / "run.json").write_text(json.dumps(RUN))
    return made


@pytest.mark.parametrize(
    ("file", "change", "key"),
    [
        ("run.json", lambda tree: tree.pop("matrix"), "matrix"),
        ("run.json", lambda tree: tree["matrix"].pop("source"), "matrix.source"),
        ("run.json", lambda tree: tree.update(seeds=[]), "seeds"),
        ("run.json", lambda tree: tree.update(started=2026), "started"),
        ("run.json", lambda tree: tree.update(wall_seconds="long"), "wall_seconds"),
        ("run.json", lambda tree: tree["machine"].update(cores="many"), "machine.cores"),
        ("run.json", lambda tree: tree.update(kernels=[{}]), "kernels.0.processor"),
        ("run.json", lambda tree: tree.update(reused=[{"folder": "x"}]), "reused.0.code"),
        ("run.json", lambda tree: tree["matrix"].update(defenses=[{}]), "matrix.defenses.0.name"),
        ("run.json", lambda tree: tree["matrix"].update(defenses="x"), "matrix.defenses"),
        ("run.json", lambda tree: tree["matrix"].update(attacks=[{"name": "pgd"}]), "matrix.attacks.0.label"),
        ("run.json", lambda tree: tree["matrix"].update(budget=[]), "matrix.budget"),
        ("records/index.json", lambda tree: tree.clear(), "jobs"),
        ("records/index.json", lambda tree: tree["jobs"][0].pop("file"), "jobs.0.file"),
        ("records/index.json", lambda tree: tree["jobs"][0].update(file="../../x.parquet"), "jobs.0.file"),
        ("records/index.json", lambda tree: tree["jobs"][0].update(later=1), "jobs.0.later"),
        ("measurements/index.json", lambda tree: tree.update(measurements="x"), "measurements"),
    ],
)
def test_the_key_at_fault_is_named(folder, file, change, key):
    tree = json.loads((folder / file).read_text())
    change(tree)
    (folder / file).write_text(json.dumps(tree))
    for end in (called(report.main, str(folder)), called(compare.main, str(folder), str(folder))):
        refused(end, str(folder / file), key)
        assert end.err.count("\n") == 1


def test_a_folder_in_place_of_a_file_is_one_line(folder, tmp_path):
    for name in ("run.json", "records/index.json", "measurements/index.json"):
        copy = shutil.copytree(folder, tmp_path / name.replace("/", "-"))
        (copy / name).unlink()
        (copy / name).mkdir()
        refused(called(report.main, str(copy)), name)


@pytest.mark.parametrize("name", ["run.json", "records/index.json", "summary.csv", "anything"])
@pytest.mark.parametrize("command", ["report", "compare", "baseline", "run"])
def test_a_pipe_in_a_run_s_folder_is_refused_by_name(tmp_path, name, command):
    """Reading from a pipe that nobody writes to never ends."""
    folder = write_run(tmp_path / "run", run(cell()))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    mains = {"report": report.main, "compare": compare.main, "baseline": baseline.main, "run": running.main}
    given = {"compare": [str(folder), str(folder)], "run": ["--matrix", "smoke", "--dry-run", "--out", str(folder)]}
    refused(called(mains[command], *given.get(command, [str(folder)])), name, "pipe")


def test_a_pipe_in_place_of_a_matrix_is_refused(tmp_path):
    os.mkfifo(tmp_path / "m.toml")
    refused(called(running.main, "--matrix", str(tmp_path / "m.toml")), "m.toml")


@pytest.mark.parametrize("files", [12, 16, 20])
def test_too_few_open_files_are_one_line(tmp_path, files):
    (tmp_path / "m.toml").write_text(MATRIX, encoding="utf-8")
    line = f"ulimit -n {files}; exec {sys.executable} -m manifold_bench.bench run --matrix m.toml --n 2"
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2 and ended.stderr.splitlines()[-1].startswith(f"error: only {files} files")


@pytest.mark.parametrize("changed", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b"\n", b"\r\n")])
def test_a_matrix_may_come_from_an_editor_of_windows(tmp_path, changed):
    (tmp_path / "m.toml").write_bytes(changed(MATRIX.encode()))
    assert called(running.main, "--matrix", str(tmp_path / "m.toml"), "--dry-run", "--n", "2").code == 0


def test_a_folder_whose_name_is_no_text_is_reported(tmp_path):
    made = write_run(tmp_path / os.fsdecode(b"run-\xff"), run(cell("clean"), cell("a")))
    assert called(report.main, str(made)).code == 0
    assert (made / "report.html").is_file()
