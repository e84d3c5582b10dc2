"""The commands as a user starts them: in a process of their own, which finds the systems of `tiny`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
from forking import server

HERE = Path(__file__).parent
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
"""A matrix of two good defenses, with an attack that suits neither."""


def environment(cache: Path, **more: str) -> dict[str, str]:
    """As it is, with a cache of its own and this folder on the path; one thread, for the same sums everywhere."""
    path = os.pathsep.join([str(HERE), *filter(None, [more.pop("path", ""), os.environ.get("PYTHONPATH", "")])])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TINY_", "MANIFOLD_BENCH_"))}
    own = {"PYTHONPATH": path, "MANIFOLD_BENCH_CACHE": str(cache), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return {**kept, **own, **more}


def command(
    module: str, *arguments: object, cache: Path, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """`manifold-bench <module>` to its end, in the folder `cwd`."""
    return server().run([module, *map(str, arguments)], environment(cache, **more), cwd, timeout=900)


def matrix_file(folder: Path, text: str) -> Path:
    """The folder's matrix.toml with that text."""
    path = folder / "matrix.toml"
    path.write_text(text, encoding="utf-8")
    return path


def bench_run(matrix: object, out: Path, *arguments: object, workers: int = 2, **more: Any):
    """Run `manifold-bench run` with a cache in the parent of the output folder."""
    return command(
        "run", "--matrix", matrix, "--out", out, "--workers", workers, *arguments, cache=out.parent / "cache", **more
    )


def record_files(out: Path) -> dict[str, tuple[int, int]]:
    """Name → (inode, time of the last change) of every record file and checksum."""
    found = sorted((out / "records").glob("[!.]*--*.*"))
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def records(out: Path) -> pd.DataFrame:
    """All records of a run but the seconds, in an order of their own."""
    from manifold_bench.bench.records.results import Results

    return Results.load(out).records.drop(columns="seconds").sort_values(["key", "eps", "sample"], ignore_index=True)


def figures(out: Path) -> pd.DataFrame:
    """summary.csv by cell: (defense, attack, eps)."""
    return pd.read_csv(out / "summary.csv", keep_default_na=False, na_values=[""]).set_index(
        ["defense", "attack", "eps"]
    )


def last_events(log: Path, name: str) -> list[dict[str, Any]]:
    """The events of that name that the last command wrote to a log, in their order."""
    from manifold_bench.bench.records.log import Log

    events, _ = Log(log).read()
    begun = max(place for place, event in enumerate(events) if event["event"] == "run started")
    return [event for event in events[begun:] if event["event"] == name]


def one_error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that ended with bad input: exit code 2, one line, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]
