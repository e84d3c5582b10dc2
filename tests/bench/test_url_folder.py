"""A run's folder at a URL: the same files there as here, nothing half, nothing left over, nothing computed again."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from manifold_bench.bench import compare, run
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.records.log import Log
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.report import __main__ as report
from manifold_bench.bench.running.url_folder import local_folder

MATRIX = """
datasets = [{ name = "digits", n = 8 }]
defenses = ["undefended"]
[[attacks]]
name = "fgsm"
eps = [0.1]
"""


@pytest.fixture
def url():
    """A folder in the memory of this process that is empty."""
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/runs/mine"


def test_a_run_at_a_url_is_the_run_of_a_folder(url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    arguments = ["--matrix", "matrix.toml", "--workers", "1", "--out"]
    assert run.main([*arguments, url]) == 0
    assert url in capsys.readouterr().out
    assert run.main([*arguments, "here"]) == 0
    with local_folder(url, "test") as (there, _):
        files = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
        assert files == {
            str(p.relative_to("here")) for p in Path("here").rglob("*") if p.is_file() and p.name != ".lock"
        }
        rows = Results.load(there).records
    own = Results.load(Path("here")).records
    pd.testing.assert_frame_equal(rows.drop(columns="seconds"), own.drop(columns="seconds"))
    assert not list(Path().glob("memory*"))

    capsys.readouterr()
    assert run.main([*arguments, url]) == 0
    assert f"open {url}/report.html" in capsys.readouterr().out
    with local_folder(url, "test") as (there, _):
        assert Log(there / "log.jsonl").read()[0][-1]["event"] == "run found finished"
    assert compare.main([url, "here"]) == 0
    assert report.main([url]) == 0 and report.main(["memory://bucket/runs/other"]) == 2


def test_what_is_new_goes_there_and_what_is_gone_goes_there_too(url):
    with local_folder(url, "test") as (folder, keep):
        (folder / "a").mkdir()
        for name in ("a/one", "two", ".draft", "a/.three.tmp"):
            (folder / name).write_text(name)
        keep()
        store = fsspec.filesystem("memory")
        assert set(store.find("/bucket")) == {"/bucket/runs/mine/a/one", "/bucket/runs/mine/two"}
        (folder / "two").unlink()
        (folder / "a" / "one").write_text("another")
        keep()
    with local_folder(url, "test") as (folder, _):
        assert [path.name for path in folder.rglob("*")] == ["a", "one"]
        assert (folder / "a" / "one").read_text() == "another"


def test_a_file_that_is_cut_off_on_its_way_is_not_there(url, monkeypatch):
    def cut(self, local, remote, **_):
        self.pipe_file(remote, Path(local).read_bytes()[:3])
        raise ConnectionError("gone")

    with local_folder(url, "test") as (folder, keep):
        (folder / "one").write_text("whole")
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "put_file", cut)
            with pytest.raises(InputError, match=r"memory://.*cannot be used .ConnectionError: gone"):
                keep()
        with local_folder(url, "test") as (seen, _):
            assert not list(seen.iterdir())
        keep()
        with local_folder(url, "test") as (seen, _):
            assert (seen / "one").read_text() == "whole"


def test_a_store_that_is_not_to_be_had_is_one_line(tmp_path, capsys):
    (tmp_path / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    assert run.main(["--matrix", str(tmp_path / "matrix.toml"), "--out", "nonsense://bucket/run"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: --out: nonsense://bucket/run cannot be used") and shown.count("\n") == 1


def test_a_file_url_is_a_folder_of_this_machine(tmp_path):
    with local_folder(f"file://{tmp_path}/run", "test") as (folder, _):
        assert folder == tmp_path / "run"
