"""Compares a run with a baseline, cell by cell, on the inputs that both share, by exact McNemar tests."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.robustness import robust
from manifold_bench.bench.metrics.shares import binomial_tail
from manifold_bench.bench.metrics.signs import SIGNS
from manifold_bench.bench.records.results import Cell, Results
from manifold_bench.defenses.identity import JsonObject

SIGNIFICANCE = 0.05
"""Significance level of all cells together: the probability that any is called different although none is (Holm)."""

VANISHED = "not in the new run"
"""Note on a cell that only the baseline has."""

COMPARABLE = (
    "dataset.indices_sha256",
    "dataset.n",
    "dataset.source_sha256",
    "defense.weights_sha256",
    "defense.other_sha256",
    "defense.source_sha256",
    "attack.label",
    "seed",
    "device",
    "eps",
    "answers",
)
"""Parts of a job's identity that may differ between comparable cells.

These are the inputs, because the shared ones are found by their hash; weights and source of the defense, because their
changes are what a gate checks; seed and device, because their effect is chance; and how the answers of a randomized
defense are counted, because the robust accuracy that is compared is the worst of n in any case."""


@dataclass(frozen=True)
class Comparison:
    """The comparison of one cell of the baseline with the same cell of the new run.

    sign: a key of SIGNS, such as "-" for worse. note: reason for the sign. n: number of shared inputs. baseline,
    new: share of them that is robust in each run, in [0, 1]. lost, gained: number of inputs robust only in the
    baseline, and only in the new run. p: exact McNemar test, Holm-adjusted over all cells that could be compared. n,
    baseline, new and p are None for a cell that could not. gone: number of the baseline's inputs that the new run does
    not have. seeds_gone: number of the baseline's seeds that it does not have, where the two share others.
    """

    cell: Cell
    sign: str
    note: str = ""
    n: int | None = None
    baseline: float | None = None
    new: float | None = None
    lost: int = 0
    gained: int = 0
    p: float | None = None
    gone: int = 0
    seeds_gone: int = 0


@dataclass(frozen=True)
class Joint:
    """The comparison of all comparable cells together, which finds losses too small to be significant in one cell.

    cells: number of cells. inputs: number of inputs that changed in any of them. lost, gained: number of pairs of input
    and cell that are robust only in the baseline, and only in the new run. p: one-sided, of the sign-flip permutation
    test of `joint`.
    """

    cells: int
    inputs: int
    lost: int
    gained: int
    p: float

    @property
    def worse(self) -> bool:
        """Whether the new run is significantly worse than the baseline."""
        return self.p <= SIGNIFICANCE


def compare(baseline: Results, new: Results) -> list[Comparison]:
    """Compare every cell of the baseline with the new run, clean and calibration cells included, in the order of SIGNS.

    An input is robust if it is accepted and right when clean and the attack succeeded for no target class and no seed;
    noise is robust if no attack succeeded. Inputs are the same if their hash and label are. Worst cases are left out,
    because they follow from cells that are compared.
    """
    found = [_compared(cell, baseline, new) for cell in baseline.cells]
    tested = {one.cell: one.p for one in found if one.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    found = [_judged(one, adjusted[one.cell]) if one.cell in adjusted else one for one in found]
    return sorted(found, key=lambda one: (list(SIGNS).index(one.sign), one.cell))


def _compared(cell: Cell, baseline: Results, new: Results) -> Comparison:
    """Return the comparison of one cell; if both runs have figures, with p not yet adjusted and the sign still ~."""
    before, why_before = baseline.status(cell)
    if cell not in new.cells:
        return Comparison(cell, "?", VANISHED)
    after, why_after = new.status(cell)
    if before == after != "ok":
        return Comparison(cell, "=", f"{after} in both: {why_after}")
    if after == "failed":
        return Comparison(cell, "!", why_after)
    if after == "skipped":
        return Comparison(cell, "?", f"skipped in the new run: {why_after}")
    if before != "ok":
        return Comparison(cell, "x", f"no figures in the baseline: {before}: {why_before}")
    changes = list(identity_differences(baseline.identity(cell), new.identity(cell), cell[-1]))
    if changes:
        return Comparison(cell, "x", "; ".join(changes))
    seeds, others = (set(run.cells[cell]["seed"]) for run in (baseline, new))
    if seeds.isdisjoint(others) and len(seeds) != len(others):  # the worst case over more seeds is worse
        return Comparison(cell, "x", f"seeds {_listed(seeds)} → {_listed(others)}")
    was, now = robust_inputs(cell, baseline, new)
    if was.empty:
        return Comparison(cell, "x", "no shared inputs")
    lost, gained = int((was & ~now).sum()), int((~was & now).sum())
    p = mcnemar(lost, gained)
    gone = len(baseline.cells[cell].drop_duplicates(["input_sha256", "label"])) - len(was)
    seeds_gone = len(seeds - others) if seeds & others else 0
    shares = float(was.mean()), float(now.mean())
    return Comparison(cell, "~", "", len(was), *shares, lost, gained, p, gone, seeds_gone)


def robust_inputs(cell: Cell, baseline: Results, new: Results) -> tuple[pd.Series, pd.Series]:
    """Return, for each run, whether each shared input of a cell is robust: bool by hash and label.

    An image that the data hold twice counts once.
    """
    was, now = (
        robust(rows).groupby([rows["input_sha256"], rows["label"]]).all() for rows in shared_rows(cell, baseline, new)
    )
    return was, now


def joint(baseline: Results, new: Results, found: Iterable[Comparison]) -> Joint | None:
    """Test whether all cells that could be compared are worse together; return None where there are none.

    found: result of `compare`. For each input the changes (robust in the new run − robust in the baseline) are summed
    over its cells, which are attacks, ε and defenses. If nothing got worse, an input's sum is as likely as its
    negative. The signs of all cells of an input flip together, so the test allows that these depend on each other; it
    only assumes that inputs are independent.
    """
    changes = [
        (now.astype(int) - was.astype(int)).rename_axis(["input_sha256", "label"])
        for was, now in (robust_inputs(one.cell, baseline, new) for one in found if one.p is not None)
    ]
    if not changes:
        return None
    every = pd.concat(changes)
    sums = every.groupby(level=[0, 1]).sum().to_numpy()
    p = sign_flip(sums[sums != 0])
    changed = int((every != 0).groupby(level=[0, 1]).any().sum())
    return Joint(len(changes), changed, int((every < 0).sum()), int((every > 0).sum()), p)


def sign_flip(sums: np.ndarray) -> float:
    """Return the one-sided p of a sign-flip test: how likely it is that the sum is so low by chance.

    sums: int [N], change of each input; under the null hypothesis each is as likely as its negative. The test is exact
    for up to 12 inputs and uses 9,999 random draws beyond (Fisher 1935; Phipson and Smyth 2010).
    """
    if not len(sums):
        return 1.0
    # late: takes a second, and reports do not need it
    from scipy.stats import permutation_test

    drawn = permutation_test(
        (np.append(sums, 0),),
        np.sum,
        permutation_type="samples",
        alternative="less",
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    return float(drawn.pvalue)


def _listed(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def shared_rows(cell: Cell, baseline: Results, new: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the cell's rows in each run, restricted to the seeds and inputs that both runs have.

    Inputs are the same if their hash and label are. If the runs share no seed, all seeds are kept, because which seeds
    a run used is chance.
    """
    was, now = baseline.cells[cell], new.cells[cell]
    seeds = set(was["seed"]) & set(now["seed"])
    if seeds:
        was, now = was[was["seed"].isin(seeds)], now[now["seed"].isin(seeds)]
    inputs, others = (rows.set_index(["input_sha256", "label"]).index for rows in (was, now))
    return was[inputs.isin(others)], now[others.isin(inputs)]


def _judged(one: Comparison, p: float) -> Comparison:
    """Return the comparison with its adjusted p and the sign that follows from it."""
    return replace(one, sign=sign_of(one.lost, one.gained, p), p=p)


def holm(p: list[float]) -> list[float]:
    """Return the p-values of several tests, adjusted for their number (Holm 1979), in the same order."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)) if p else []
    return [float(value) for value in adjusted.clip(max=1)]


def sign_of(lost: int, gained: int, p: float) -> str:
    """Return the sign (=, ~, - or +) for numbers of inputs lost and gained. p: of their McNemar test, adjusted."""
    if lost == gained == 0:
        return "="
    if p > SIGNIFICANCE:
        return "~"
    return "-" if lost > gained else "+"


def mcnemar(lost: int, gained: int) -> float:
    """Return the two-sided p of the exact McNemar test, whose null hypothesis is that losses and gains are equally
    likely (McNemar 1947).
    """
    return min(1.0, 2 * binomial_tail(max(lost, gained), lost + gained, 0.5))


def identity_differences(before: JsonObject, after: JsonObject, eps: float) -> Iterator[str]:
    """Yield every difference that makes two results at this ε incomparable: `attack.parameters.steps 40 → 100`.

    before, after: identities of the two jobs.
    """
    old, new = ({**dict(leaves(identity)), "eps up to this": _steps(identity, eps)} for identity in (before, after))
    paths = sorted({*old, *new})
    if old.get("identity") != new.get("identity"):  # identities of different schemes cannot be compared in detail
        paths = ["identity"]
    for path in paths:
        if path not in COMPARABLE and old.get(path) != new.get(path):
            yield f"{path} {' → '.join(textwrap.shorten(value_text(side, path), 40) for side in (old, new))}"


def value_text(identity: JsonObject, path: str) -> str:
    """Return the value at a path of a flat identity as text; a missing parameter has its default."""
    if path not in identity and ".parameters." in path:
        return "default"
    return json.dumps(identity.get(path), ensure_ascii=False)


def _steps(identity: JsonObject, eps: float) -> list[float]:
    """Return the ε that affect the result at this ε: on a ladder all smaller ones, whose successes carry over."""
    return [value for value in map(float, identity["eps"]) if value <= eps] if identity["ladder"] else [eps]


def leaves(tree: JsonObject, above: str = "") -> Iterator[tuple[str, object]]:
    """Yield the leaves of nested dicts with their dotted paths. above: prefix of the paths."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
