"""The jobs of a matrix, and how many backward passes they took compared with a plain cross product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.matrix import Matrix
from manifold_bench.bench.planning.plan import Options, make_plan

PASSES = (
    "Backward passes are those of all gradient attacks together, compared with what they would take if every ε were "
    "attacked separately with the full budget. An input that is beaten at one ε needs no passes at the next. A robust "
    "input needs the full budget at every ε, and no order of the ε that gives the same results saves those passes."
)


def planned(matrix: Matrix, options: Options) -> list[Job]:
    """Of the whole matrix, but those that don't suit their defense."""
    return [job for job in make_plan(matrix, options).jobs if job.skip is None]


def rows_of_passes(jobs: Sequence[Job], found: Mapping[str, pd.DataFrame]) -> list[list[str]]:
    """Lines of a table: backward passes of an input, all jobs together. found: records by the jobs' titles."""
    ours = holding = plain = 0.0
    for job in jobs:
        if job.attack is None:
            continue
        rows = found[job.title]
        inputs = rows["sample"].nunique()
        ours += rows["backwards"].sum() / inputs
        holding += rows["backwards"][~rows["success"]].sum() / inputs
        plain += job.attack.passes()[1] * rows["eps"].nunique()
    return [
        ["backward passes for each input", f"{ours:.0f}", f"{ours / plain:.2f} of {plain:.0f}"],
        ["of these, on robust inputs", f"{holding:.0f}", f"{holding / plain:.2f}"],
    ]
