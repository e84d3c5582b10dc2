"""The strongest single attacks: one rule for the report's leaderboard and the table of the Python interface."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from manifold_bench.bench.metrics.summary import strongest


def rows(clean: float | None, **attacks: dict[float, float]) -> pd.DataFrame:
    """Rows of a summary: the robust accuracy of each attack by ε, and the clean one; NaN for a failed cell."""
    made = [] if clean is None else [("clean", "clean", "none", 0.0, clean)]
    made += [(name, "attack", "linf", eps, share) for name, cells in attacks.items() for eps, share in cells.items()]
    made += [("worst-case", "worst-case", "linf", 0.1, 0.0)]
    table = pd.DataFrame(made, columns=["attack", "kind", "norm", "eps", "robust_accuracy"])
    return table.assign(status=["failed" if math.isnan(share) else "ok" for share in table["robust_accuracy"]])


@pytest.mark.parametrize(
    ("summary", "attacks", "share"),
    [
        (rows(0.9, pgd={0.1: 0.5}, fgsm={0.1: 0.6}), ("pgd",), 0.5),
        (rows(0.9, pgd={0.1: 0.5}, apgd={0.1: 0.5}, fgsm={0.1: 0.6}), ("apgd", "pgd"), 0.5),
        (rows(0.9, pgd={0.05: 0.4, 0.1: 0.5}, apgd={0.1: 0.45}), ("pgd",), 0.4),  # a smaller ball lies in the larger
        (rows(0.9, pgd={0.1: 0.5, 0.2: 0.0}), ("pgd",), 0.5),  # ε = 0.2 is outside
        (rows(0.9, pgd={0.1: 0.9}), (), 0.9),
        (rows(None, pgd={0.1: 0.9}), ("pgd",), 0.9),
        (rows(0.9, pgd={0.1: math.nan}, fgsm={0.1: 0.6}), ("fgsm",), 0.6),
        (rows(0.9, pgd={0.1: math.nan}), (), math.nan),
        (rows(0.9), (), math.nan),
    ],
)
def test_the_attacks_that_alone_leave_the_least_within_eps(summary, attacks, share):
    found = strongest(summary, 0.1)
    assert found.attacks == attacks
    assert found.share == pytest.approx(share, nan_ok=True)
