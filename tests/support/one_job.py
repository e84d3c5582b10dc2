"""The records of one attack, run as a job in the test's own process."""

from __future__ import annotations

import pandas as pd
from here import run_here
from tiny import SEEN

from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.records.store import Store
from manifold_bench.defenses.base import DefenseSpec

LADDER = [0.01, 0.02, 0.04, 0.08, 0.16]
BEATEN_BEFORE = [0, 6, 12, 18]
"""Images of `Grey` that bear a wrong label."""
DIGITS = {"dataset": "digits", "defense": "tiny:Wary", "n": 12}


def planned(*attacks, dataset="closed_form:Grey", defense="closed_form:Linear", n=24, **more) -> list[Job]:
    """The jobs of the clean pass and of those attacks."""
    matrix = parse_matrix(
        {"datasets": [{"name": dataset, "n": n}], "defenses": [defense], "attacks": list(attacks), **more}, "test.toml"
    )
    return make_plan(matrix, Options()).jobs


def ran(folder, *attacks, **more) -> list[pd.DataFrame]:
    """The stored rows of the clean pass and of those attacks, each run as a job; by ε, sample and aim.

    `tiny.SEEN` then holds the calls of these jobs alone.
    """
    SEEN.clear()
    jobs = planned(*attacks, **more)
    store = Store(folder)
    for job in jobs:
        run_here(job, folder)
    stored = (store.read(store.path(job))[0] for job in jobs)
    return [rows.sort_values(["eps", "sample", "aim"], ignore_index=True) for rows in stored]


def by_eps(rows: pd.DataFrame) -> dict[float, pd.DataFrame]:
    return {float(eps): group.sort_values("sample", ignore_index=True) for eps, group in rows.groupby("eps")}


def answers(defense, images):
    """What a defense says of those images of digits: label, rejected and score."""
    said = defense(DefenseSpec(shape=(1, 8, 8), num_classes=10)).verdict(images)
    return said.labels.tolist(), said.rejected.tolist(), said.scores.double().tolist()
