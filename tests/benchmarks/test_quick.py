"""The matrix `quick`: passes compared with a cross product, two workers with one, memory, and what isn't a pass."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from here import run_here
from plans import PASSES, planned, rows_of_passes
from torch import nn

from manifold_bench.attacks.view import View
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.plan import Options
from manifold_bench.bench.planning.reading import read_matrix
from manifold_bench.bench.records.log import LOG
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.engines.processes import keep_freed_memory
from manifold_bench.defenses.base import Defense

pytestmark = pytest.mark.slow

MATRIX = "quick"
SHALLOW = ("undefended", "pgd-training", "gmvae")
"""Defenses without an optimisation inside: what isn't a pass shows most."""

TIMES = ["seconds"]
"""Columns of the records that are clocks."""


@cache
def jobs() -> list[Job]:
    """Of the whole matrix, but those that don't suit their defense."""
    return planned(read_matrix(MATRIX), Options())


def seconds(*arguments: str) -> float:
    """Of a command, from its start to its end."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "manifold_bench.bench", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def records(folder: Path) -> dict[str, pd.DataFrame]:
    """What every finished job found, by its title."""
    store = Store(folder)
    return {job.title: store.read(store.path(job))[0] for job in jobs()}


def test_a_matrix_with_one_worker_and_with_two(benchmark, tmp_path: Path, tell):
    took = {}
    for workers in (1, 2):
        took[workers] = seconds(
            "run", "--matrix", MATRIX, "--workers", str(workers), "--out", str(tmp_path / str(workers))
        )
    one, two = records(tmp_path / "1"), records(tmp_path / "2")
    for title, rows in one.items():
        pd.testing.assert_frame_equal(rows.drop(columns=TIMES), two[title].drop(columns=TIMES))
    again = ["run", "--matrix", MATRIX, "--workers", "2", "--out", str(tmp_path / "2")]
    benchmark.pedantic(seconds, args=again, rounds=1)
    log = [json.loads(line) for line in (tmp_path / "2" / LOG).read_text(encoding="utf-8").splitlines()]
    worker = max(entry["memory"] for entry in log if entry["event"] == "job finished")
    whole = max(entry["memory"] for entry in log if entry["event"] == "run finished")
    rows = [
        ["one worker, the whole command", f"{took[1]:.0f} s", ""],
        ["two workers", f"{took[2]:.0f} s", f"{took[1] / took[2]:.2f} times as fast"],
        ["the same command again", f"{seconds(*again):.1f} s", "nothing is computed"],
        ["`run --help`", f"{seconds('run', '--help'):.2f} s", ""],
        ["`list`", f"{seconds('list'):.2f} s", ""],
        ["memory of a worker, at most", f"{worker / 2**30:.2f} GiB", ""],
        ["memory of all processes", f"{whole / 2**30:.2f} GiB", "two workers"],
        *rows_of_passes(jobs(), two),
    ]
    tell(
        title=f"The matrix `{MATRIX}`",
        text=f"{len(two)} jobs. {PASSES}",
        columns=["", "measured", ""],
        rows=rows,
    )


class Clock:
    """Seconds spent in functions that it wraps, those that one of them calls counted once."""

    def __init__(self) -> None:
        self.seconds, self._inside = 0.0, False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            if self._inside:
                return function(*arguments, **keywords)
            self._inside, begun = True, time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self._inside = False
                self.seconds += time.perf_counter() - begun

        return timed


def test_what_a_job_takes_in_addition_to_its_passes(benchmark, inputs: int, tmp_path: Path, monkeypatch, tell):
    torch.set_num_threads(1)
    keep_freed_memory()
    clock = Clock()
    passes = ((nn.Module, "__call__"), (View, "logits"), (Defense, "verdict"))
    for owner, name in (*passes, (torch.autograd, "grad"), (torch.autograd, "backward")):
        monkeypatch.setattr(owner, name, clock.wrap(getattr(owner, name)))
    matrix = read_matrix(MATRIX)
    chosen = [job for job in planned(matrix, Options(n=inputs)) if job.defense.label in SHALLOW]
    lines: dict[str, list[tuple[float, float]]] = {}

    def all_jobs() -> None:
        for job in chosen:
            clock.seconds, begun = 0.0, time.perf_counter()
            assert run_here(job, tmp_path) == "ok", job.title
            lines.setdefault(f"{job.label} {job.norm}", []).append((time.perf_counter() - begun, clock.seconds))

    benchmark.pedantic(all_jobs, rounds=1)
    lines["all of them"] = [part for parts in lines.values() for part in parts]
    rows = []
    for kind, parts in lines.items():
        whole, inside = (sum(values) for values in zip(*parts, strict=True))
        rows.append([kind, f"{whole:.2f} s", f"{1 - inside / whole:.1%}"])
    tell(
        title="What isn't a pass",
        text=f"Time of jobs of `quick` on {', '.join(SHALLOW)}, with {inputs} inputs, from loading the defense to the "
        "stored records, and the share of it that is spent outside forward and backward passes. The loss and the "
        "attack's steps are outside.",
        columns=["jobs", "time", "outside passes"],
        rows=rows,
    )
