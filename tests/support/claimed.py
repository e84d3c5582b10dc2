"""Claims and the cells that they are about, made by hand."""

from __future__ import annotations

from handmade import REJECT, cell

from manifold_bench.bench.planning.claims import Budget, Claim
from manifold_bench.bench.records.schema import CLEAN

LADDER = cell(
    "fgsm",
    eps=(0.1, 0.2, 0.3),
    labels=[0, 1, 2, 3],
    clean=[0, 1, 2, 0],
    adv={0.1: [0, 2, REJECT, REJECT], 0.2: [1, 2, REJECT, REJECT], 0.3: [REJECT, REJECT, REJECT, 3]},
)
CLEAN_CELL = cell(CLEAN, labels=[0, 1, 2, 3], clean=[0, 1, REJECT, 0])
WEAK = cell(
    "weak",
    eps=(0.1, 0.2),
    labels=[0, 1, 2, 3],
    clean=[0, 1, REJECT, 0],
    adv={0.1: [0, 1, REJECT, 0], 0.2: [1, 1, REJECT, 0]},
)
STRONG = cell("strong", eps=(0.1,), labels=[0, 1, 2, 3], clean=[0, 1, REJECT, 0], adv=[1, 1, 3, 0])
AT = Budget(norm="linf", eps=0.1)
_FALLEN = {0.05: 1, 0.1: 3, 0.2: 3, 0.3: 4}
LATE = cell(
    "pgd",
    eps=tuple(_FALLEN),
    labels=[0] * 4,
    adv={eps: [1] * count + [0] * (4 - count) for eps, count in _FALLEN.items()},
)
LATE.loc[LATE["success"], ["forwards", "backwards"]] = (2, 2)
LATE.loc[~LATE["success"], ["forwards", "backwards"]] = (20, 20)
LATE.loc[LATE["success"] & LATE["sample"].isin([1, 2]) & (LATE["eps"] == 0.1), ["forwards", "backwards"]] = (15, 15)
"""An attack that beats two of four inputs late at ε = 0.1, none late at other ε, and all inputs at ε = 0.3."""
CLAIM = {
    "source": "a paper, table 1",
    "text": "right",
    "published": 0.9,
    "figure": "accuracy",
    "dataset": "digits",
    "defense": "gmvae",
}


def claim(**values: object) -> Claim:
    """A claim with norm and ε as the matrix would have filled them in: of the handmade cells."""
    cell = {"norm": "none", "eps": 0.0} if values.get("attack", CLEAN) == CLEAN else {"norm": "linf", "eps": 0.1}
    return Claim(**{**CLAIM, **cell, "defense": "d", **values})
