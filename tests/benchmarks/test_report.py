"""The report of a run: CPU time to read the records of 125, 250 and 500 jobs and to write everything that shows them.

`pytest tests/benchmarks/test_report.py -m slow --benchmark-only`. Twice the jobs should take twice the time: the last
column is how much more, or less, a job takes than in the smallest run.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade import cell, write_run

from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import CLEAN
from manifold_bench.bench.report.writing import write_report

pytestmark = pytest.mark.slow

DEFENSES = (6, 12, 25)
ATTACKS, INPUTS, LADDER = 20, 100, (0.05, 0.1, 0.2, 0.3)


def stored_run(folder: Path, defenses: int) -> Path:
    """A run of one data set: clean answers and 20 attacks on each defense, at four ε on 100 inputs."""
    random = np.random.default_rng(0)
    labels = [i % 10 for i in range(INPUTS)]
    jobs = []
    for attack in range(ATTACKS + 1):
        answers = {eps: ((random.random(INPUTS) < 3 * eps) + np.array(labels)) % 10 for eps in (0.0, *LADDER)}
        name, norm = (f"attack{attack}", ("linf", "l2")[attack % 2]) if attack else (CLEAN, "none")
        jobs.append(cell(name, LADDER, labels, adv={eps: list(found) for eps, found in answers.items()}, norm=norm))
    each = [
        rows.assign(defense=f"d{i}", key=f"digits/d{i}/{rows['attack'].iloc[0]}/{rows['norm'].iloc[0]}/0")
        for i in range(defenses)
        for rows in jobs
    ]
    return write_run(folder, pd.concat(each, ignore_index=True), families={"d0": "any"})


@pytest.mark.benchmark(timer=time.process_time)
def test_time_grows_in_proportion_to_the_jobs(benchmark, tmp_path: Path, tell):
    write_report(Results.load(stored_run(tmp_path / "first", 1)))  # what is imported late is imported here
    took: dict[int, tuple[float, float]] = {}

    def report(folder: Path) -> None:
        begun = time.process_time()
        results = Results.load(folder)
        read = time.process_time() - begun
        write_report(results)
        took[len(results.index)] = (read, time.process_time() - begun - read)

    folders = [stored_run(tmp_path / str(count), count) for count in DEFENSES]
    benchmark.pedantic(lambda: [report(folder) for folder in folders], rounds=1)
    each = {jobs: sum(parts) / jobs for jobs, parts in took.items()}
    first = next(iter(each.values()))
    tell(
        title="The report of a run",
        text=f"{ATTACKS} attacks at {len(LADDER)} ε on {INPUTS} inputs for each defense; CPU time of one process.",
        columns=["jobs", "reading", "writing", "each 1,000 jobs", "times the smallest run's"],
        rows=[
            [f"{jobs}", f"{read:.1f} s", f"{write:.1f} s", f"{1000 * each[jobs]:.0f} s", f"{each[jobs] / first:.2f}"]
            for jobs, (read, write) in took.items()
        ],
    )
