"""A run made by hand whose page shows everything that there can be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from handmade import REJECT, cell, run, write_run

from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import CLEAN
from manifold_bench.bench.report.writing import write_report

LABELS = [0] * 10
GREY = np.full(64, 100, dtype=np.uint8)
IMAGES = {i: ((GREY + i).tobytes(), (GREY + 50 + i).tobytes(), None) for i in range(4)}
EVIL = "<script>alert(1)</script>"
CELLS = (
    cell(CLEAN, labels=LABELS, defense="undefended"),
    cell("fgsm", (0.1, 0.2), LABELS, adv=[1] * 3 + [0] * 7, defense="undefended", images=IMAGES),
    cell("pgd (b, c)", (0.1, 0.2), LABELS, adv=[1] * 8 + [0] * 2, defense="undefended"),
    cell("cw", (0.5, 1.0), LABELS, adv=[1] * 6 + [0] * 4, norm="l2", defense="undefended"),
    cell(CLEAN, labels=LABELS, clean=[0] * 9 + [REJECT], defense="gmvae"),
    cell(
        "pgd (b, c)",
        (0.1, 0.2),
        LABELS,
        [0] * 9 + [REJECT],
        [1] + [REJECT] * 3 + [0] * 6,
        defense="gmvae",
        images=IMAGES,
    ),
    cell("cw", (0.5, 1.0), LABELS, norm="l2", defense="gmvae", status="failed", reason=f"{EVIL} & out of memory"),
    cell(CLEAN, labels=LABELS, dataset="mnist", defense=EVIL),
    cell("pgd (b, c)", (0.3,), LABELS, adv=[1] * 10, dataset="mnist", defense=EVIL, passes=(12.5, 0.25)),
    cell("noise", labels=[-1] * 4, adv=[1, REJECT, 2, REJECT], norm="fooling", defense="gmvae", images=IMAGES),
)
RUN = {
    "code": "abc+dirty",
    "python": "3.11",
    "packages": {"torch": "2"},
    "finished": True,
    "wall_seconds": 1234.5,
    "machine": {"system": "Linux", "processor": "x86_64", "cores": 2},
    "command": ["run.py", "--matrix", "smoke"],
    "started": "2026-01-02T03:04:05Z",
    "workers": 2,
    "device": "cpu",
    "seeds": [3],
    "draws": 1,
    "matrix": {
        "source": "bench/matrices/smoke.toml",
        "claims": [],
        "datasets": [{"name": "digits", "n": 10}, {"name": "mnist", "n": None}],
    },
}
FAMILIES = {"undefended": "none", "gmvae": "generative rejection"}
DIAGNOSIS = [
    {
        "dataset": "digits",
        "defense": "undefended",
        "result": "fail",
        "checks": [
            {"check": "a", "title": "more steps", "result": "fail", "evidence": "n = 10", "meaning": "attack longer"},
            {"check": "b", "title": "grey", "result": "not run", "evidence": "", "meaning": ""},
        ],
    }
]


def write_page(folder: Path) -> Path:
    """Make the folder a run of CELLS with its report; return it."""
    write_run(folder, run(*CELLS), FAMILIES)
    (folder / "run.json").write_text(json.dumps(RUN))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manifold_bench.bench.report.contents.diagnose", lambda results: {"defenses": DIAGNOSIS})
        write_report(Results.load(folder))
    return folder
