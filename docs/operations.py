"""Count the operations of the shipped defenses that optimise at inference: `python docs/operations.py DATA_FOLDER`.

They are written into `bench/planning/operations.json`, so that planning the matrix `full` counts none of them again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from manifold_bench.bench.planning.plan import Options, Plan, make_plan
from manifold_bench.bench.planning.reading import read_matrix
from manifold_bench.bench.planning.work import OPERATIONS, known_operations
from manifold_bench.defenses.identity import key_of


def slow(plan: Plan) -> dict[str, float]:
    """The operations of an answer of each defense that optimises, by the key of the defense."""
    return {
        key_of(job.identity["defense"]): job.operations for job in plan.jobs if job.operations and job.inference_steps
    }


if __name__ == "__main__":
    known_operations().clear()
    found = slow(make_plan(read_matrix("full"), Options(data=Path(sys.argv[1]))))
    OPERATIONS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
