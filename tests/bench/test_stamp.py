"""A finished run is recognised without loading what it ran with, and nothing else passes for one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command
from users import write

from manifold_bench.attacks.gradient import PGD
from manifold_bench.bench import run
from manifold_bench.bench.arguments import run_parser
from manifold_bench.bench.evaluation import evaluate as evaluation
from manifold_bench.bench.records.log import Log
from manifold_bench.bench.running import stamp
from manifold_bench.bench.running.stamp import STAMP, request_of, stored_output

MATRIX = """
datasets = [{ name = "digits", n = 3 }]
defenses = ["undefended"]
[[attacks]]
name = "fgsm"
eps = [0.1, 0.3]
"""
HEAVY = ("torch", "numpy", "pandas", "pyarrow", "matplotlib", "sklearn", "pydantic")


def request(matrix, *arguments):
    return request_of(run_parser().parse_args(["--matrix", str(matrix), *map(str, arguments)]))


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Matrix file and folder of a finished run, which failed at first."""
    folder = tmp_path_factory.mktemp("finished")
    matrix, out = folder / "matrix.toml", folder / "out"
    for text, code in ((MATRIX.replace("fgsm", "broken:Raises"), 1), (MATRIX, 0)):
        matrix.write_text(text, encoding="utf-8")
        assert run.main(["--matrix", str(matrix), "--out", str(out), "--workers", "1"]) == code
        assert (out / STAMP).exists() == (code == 0)
    return matrix, out


@pytest.fixture
def copy(ended, tmp_path):
    """The matrix, and a copy of the folder to meddle with."""
    return ended[0], shutil.copytree(ended[1], tmp_path / "copy")


def test_the_same_command_again_renders_nothing_and_starts_no_worker(copy, monkeypatch, capsys):
    def never(*arguments, **more):
        raise AssertionError("nothing has to be done")

    monkeypatch.setattr("manifold_bench.bench.evaluation.evaluate.write_report", never)
    monkeypatch.setattr("manifold_bench.bench.running.engines.local.LocalEngine.__init__", never)
    matrix, out = copy
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "log.jsonl"}
    assert run.main(["--matrix", str(matrix), "--out", str(out), "--workers", "2"]) == 0
    shown = capsys.readouterr().out
    assert "worst case over attacks" in shown
    assert shown.splitlines()[-1] == f"2 jobs: 2 ok, 0 failed, 0 skipped; finished before; open {out}/report.html"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "log.jsonl"} == before
    assert Log(out / "log.jsonl").read()[0][-1]["event"] == "run found finished"
    assert run.main(["--matrix", str(matrix), "--out", str(out), "--quiet"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def meddle_with_records(out):
    (path,) = (out / "records").glob("*fgsm*.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")


@pytest.mark.parametrize(
    "meddle",
    {
        "records": meddle_with_records,
        "records gone": lambda out: next((out / "records").glob("*clean*.parquet")).unlink(),
        "a plot gone": lambda out: next((out / "plots").glob("*.svg")).unlink(),
        "a table changed": lambda out: next((out / "tables").glob("*.md")).write_text("100 %", encoding="utf-8"),
        "something new": lambda out: (out / "records" / "more.parquet").write_bytes(b"PAR1"),
        "another index": lambda out: (out / "records" / "index.json").write_text('{"jobs": []}', encoding="utf-8"),
        "half a stamp": lambda out: (out / STAMP).write_text((out / STAMP).read_text()[:200], encoding="utf-8"),
        "no stamp": lambda out: (out / STAMP).unlink(),
        "a stamp of garbage": lambda out: (out / STAMP).write_text("[]", encoding="utf-8"),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_what_is_no_longer_whole_is_not_finished(copy, meddle):
    matrix, out = copy
    assert stored_output(out, request(matrix)) is not None
    meddle[1](out)
    assert stored_output(out, request(matrix)) is None


@pytest.mark.parametrize(
    "more",
    [
        ("--n", 2),
        ("--seed", 0),
        ("--defense", "undefended"),
        ("--attack", "pgd"),
        ("--device", "cuda"),
        ("--data", "."),
    ],
    ids=str,
)
def test_another_request_is_not_finished(ended, more):
    assert stored_output(ended[1], request(ended[0], *more)) is None


def test_what_changes_no_result_is_the_same_request(ended):
    same = request(ended[0], "--workers", 7, "--quiet", "--out", "elsewhere")
    assert stored_output(ended[1], same) is not None


def test_other_matrices_variables_paths_versions_and_names_are_another_request(ended, tmp_path, monkeypatch):
    matrix, out = ended
    other = tmp_path / "matrix.toml"
    other.write_text(matrix.read_text(encoding="utf-8") + "# a word\n", encoding="utf-8")
    assert stored_output(out, request(other)) is None
    for change in (
        lambda m: m.setenv("MANIFOLD_BENCH_CACHE", str(tmp_path)),
        lambda m: m.setattr(sys, "path", [str(tmp_path), *sys.path]),
        lambda m: m.setattr(stamp, "package_version", lambda name: "0"),
        lambda m: m.setattr(stamp, "registered", lambda kind: {}),
    ):
        with monkeypatch.context() as changed:
            change(changed)
            assert stored_output(out, request(matrix)) is None
    assert stored_output(out, request(matrix)) is not None


def test_other_code_weights_or_data_are_another_request(tmp_path, monkeypatch):
    code, data = tmp_path / "package", tmp_path / "data"
    for folder in (code / "attacks", code / "defenses" / "zoo", code / "bench", data / "mnist"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(stamp, "PROJECT", code)
    seen = [request("smoke", "--data", data)]
    for path in (code / "attacks" / "pgd.py", code / "defenses" / "zoo" / "cnn.safetensors", data / "mnist" / "images"):
        for content in (b"one", b"two."):
            path.write_bytes(content)
            seen.append(request("smoke", "--data", data))
    (code / "bench" / "__pycache__").mkdir()
    (code / "bench" / "__pycache__" / "run.pyc").write_bytes(b"one")
    assert request("smoke", "--data", data) == seen[-1]
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])


def test_weights_in_the_cache_are_part_of_what_was_used(ended):
    _, out = ended
    used = json.loads((out / STAMP).read_text(encoding="utf-8"))["read"]
    assert {Path(path).suffix for path in used} == {".safetensors", ".json"} and all(used.values())


USER = """
from {base} import Undefended as Base


class Mine(Base):
    from helper import scale
"""


def test_a_run_with_code_of_users_is_recognised_until_that_code_changes(tmp_path):
    """Whether it is the file of a class or one that it imports; recognising it loads neither."""
    write(tmp_path, {"mine.py": USER.format(base="manifold_bench.defenses.undefended"), "helper.py": "scale = 1.0\n"})
    (tmp_path / "matrix.toml").write_text(MATRIX.replace("undefended", "mine:Mine"), encoding="utf-8")

    def again() -> str:
        arguments = ("run", "--matrix", "matrix.toml", "--out", "out", "--workers", 1)
        done = command(*arguments, cache=tmp_path / "cache", cwd=tmp_path, PYTHONDONTWRITEBYTECODE="1")
        assert done.returncode == 0, done.stdout + done.stderr
        return Log(tmp_path / "out" / "log.jsonl").read()[0][-1]["event"]

    assert [again(), again()] == ["run finished", "run found finished"]
    write(tmp_path, {"helper.py": "scale = 2.0\n"})
    assert [again(), again()] == ["run finished", "run found finished"]


def test_code_that_no_hash_covers_leaves_no_stamp():
    class Installed:
        __module__ = "pydantic.main"

    assert evaluation.code_of_users([("pydantic.main:Installed", Installed)]) is None
    assert evaluation.code_of_users([("pgd", PGD)]) == {}


@pytest.mark.parametrize("arguments", [["run", "--help"], ["list"], None], ids=["help", "list", "a finished run"])
def test_nothing_heavy_is_imported_to_say_what_is_known(ended, arguments):
    matrix, out = ended
    given = arguments or ["run", "--matrix", str(matrix), "--out", str(out)]
    lines = f"""
import atexit, sys
from manifold_bench.bench.__main__ import main
atexit.register(lambda: print("heavy:", [name for name in {HEAVY!r} if name in sys.modules]))
main({given!r})
"""
    # the stamp knows the path that modules were found on: this process' own
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    done = subprocess.run([sys.executable, "-c", path + lines], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "heavy: []", done.stdout + done.stderr
    assert arguments or Log(out / "log.jsonl").read()[0][-1]["event"] == "run found finished"


def test_weights_next_to_users_code_are_part_of_the_stamp(tmp_path):
    code = tmp_path / "mine.py"
    for name in ("net.pt", "more.safetensors", "notes.txt"):
        (tmp_path / name).write_bytes(b"1")
    found = [path.name for path in evaluation.files_of_weights([str(code)]) if path.parent == tmp_path]
    assert found == ["more.safetensors", "net.pt"] and evaluation.files_of_weights([]) == []
