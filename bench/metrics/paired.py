"""A run against a baseline, cell by cell, on the inputs that both share: exact McNemar, Holm-corrected."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import permutation_test
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar

from manifold_bench.bench.metrics.robustness import robust
from manifold_bench.bench.metrics.signs import SIGNS
from manifold_bench.bench.records.results import Cell, Results
from manifold_bench.defenses.identity import JsonObject

SIGNIFICANCE = 0.05
"""Chance, over all cells together, of calling any of them different where none is (Holm)."""


COMPARABLE = (
    "dataset.indices_sha256",
    "dataset.n",
    "dataset.source_sha256",
    "defense.weights_sha256",
    "defense.source_sha256",
    "attack.label",
    "seed",
    "device",
    "eps",
)
"""What may differ in a job's identity without making its cells incomparable: the inputs, of which the shared ones are
taken by their content; a defense that was trained again or rewritten under the same version, which is what a gate is
for; chance."""


@dataclass(frozen=True)
class Comparison:
    """What became of one cell of the baseline.

    n: shared inputs; baseline, new: their robust shares; lost, gained: inputs robust only before, only now;
    p: exact McNemar, Holm-adjusted over all cells that could be compared. None where nothing could be compared.
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


@dataclass(frozen=True)
class Joint:
    """All comparable cells together: is the new run worse, whatever each cell says for itself?

    cells, inputs: number of cells, and of inputs of which any changed. lost, gained: pairs of input and cell that are
    robust only before, only now. p: one-sided, of a sign-flip permutation test (see `joint`).
    """

    cells: int
    inputs: int
    lost: int
    gained: int
    p: float

    @property
    def worse(self) -> bool:
        return self.p <= SIGNIFICANCE


def compare(baseline: Results, new: Results) -> list[Comparison]:
    """What became of every cell of the baseline, those of clean and calibration images included, in the order of SIGNS.

    An input is robust where it is accepted and right when clean and the attack succeeded for no aim and with no seed;
    noise, which has no right answer, where nothing succeeded. Inputs are the same where hash and label are. Worst cases
    are left out: they follow from cells that are compared already.
    """
    found = [_compared(cell, baseline, new) for cell in baseline.cells]
    tested = {one.cell: one.p for one in found if one.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    found = [_judged(one, adjusted[one.cell]) if one.cell in adjusted else one for one in found]
    return sorted(found, key=lambda one: (list(SIGNS).index(one.sign), one.cell))


def _compared(cell: Cell, baseline: Results, new: Results) -> Comparison:
    """What became of one cell; where both runs have figures, p is not yet adjusted and the sign is open (~)."""
    before, why_before = baseline.status(cell)
    if cell not in new.cells:
        return Comparison(cell, "?", "not in the new run")
    after, why_after = new.status(cell)
    if before == after != "ok":
        return Comparison(cell, "=", f"{after} in both: {why_after}")
    if after == "failed":
        return Comparison(cell, "!", why_after)
    if after == "skipped":
        return Comparison(cell, "?", f"skipped in the new run: {why_after}")
    if before != "ok":
        return Comparison(cell, "x", f"no figures in the baseline: {before}: {why_before}")
    changes = list(changed(baseline.identity(cell), new.identity(cell), cell[-1]))
    if changes:
        return Comparison(cell, "x", "; ".join(changes))
    seeds, others = (set(run.cells[cell]["seed"]) for run in (baseline, new))
    if seeds.isdisjoint(others) and len(seeds) != len(others):  # the worst of more seeds is worse
        return Comparison(cell, "x", f"seeds {_listed(seeds)} → {_listed(others)}")
    was, now = robust_inputs(cell, baseline, new)
    if was.empty:
        return Comparison(cell, "x", "no shared inputs")
    lost, gained = int((was & ~now).sum()), int((~was & now).sum())
    p = mcnemar(lost, gained)
    return Comparison(cell, "~", "", len(was), float(was.mean()), float(now.mean()), lost, gained, p)


def robust_inputs(cell: Cell, baseline: Results, new: Results) -> tuple[pd.Series, pd.Series]:
    """Whether each shared input of a cell is robust in each run, by its hash and label.

    An image that is in the data twice counts once: it is one draw.
    """
    was, now = (
        robust(rows).groupby([rows["input_sha256"], rows["label"]]).all() for rows in shared_rows(cell, baseline, new)
    )
    return was, now


def joint(baseline: Results, new: Results, found: Iterable[Comparison]) -> Joint | None:
    """The test of all cells that could be compared, None where there are none; found: of `compare`.

    For each input the changes (robust now − robust before) are summed over its cells: attacks, ε and defenses. If
    nothing got worse, an input's sum is as likely as its negative. All signs of one input flip together, so that the
    test holds however its cells depend on each other; that inputs are independent draws is all it takes.
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
    """One-sided p that changes of inputs, int [N], sum to as little by chance, each as likely as its negative.

    Exact for up to 12 inputs, of 9,999 draws beyond (Fisher 1935; Phipson and Smyth 2010).
    """
    if not len(sums):
        return 1.0
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
    """The cell's rows in each run, with the seeds and on the inputs that both have: those of the same hash and label.

    Where no seed is in both, all of them: which seed it was is chance.
    """
    was, now = baseline.cells[cell], new.cells[cell]
    seeds = set(was["seed"]) & set(now["seed"])
    if seeds:
        was, now = was[was["seed"].isin(seeds)], now[now["seed"].isin(seeds)]
    inputs, others = (rows.set_index(["input_sha256", "label"]).index for rows in (was, now))
    return was[inputs.isin(others)], now[others.isin(inputs)]


def _judged(one: Comparison, p: float) -> Comparison:
    """The final sign of a cell by its adjusted p."""
    return replace(one, sign=sign_of(one.lost, one.gained, p), p=p)


def holm(p: list[float]) -> list[float]:
    """p of several tests, adjusted for there being so many (Holm 1979); in the order given."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)) if p else []
    return [float(value) for value in adjusted.clip(max=1)]


def sign_of(lost: int, gained: int, p: float) -> str:
    """=, ~, - or + for so many inputs lost and gained; p: adjusted, of their exact McNemar test."""
    if lost == gained == 0:
        return "="
    if p > SIGNIFICANCE:
        return "~"
    return "-" if lost > gained else "+"


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p of the exact McNemar test: are lost and gained halves of their sum, up to chance (McNemar 1947)?"""
    return float(exact_mcnemar([[0, lost], [gained, 0]], exact=True).pvalue)


def changed(before: JsonObject, after: JsonObject, eps: float) -> Iterator[str]:
    """`attack.parameters.steps 40 → 100` for whatever makes two results at this ε incomparable."""
    old, new = ({**dict(flat(identity)), "eps up to this": _steps(identity, eps)} for identity in (before, after))
    paths = sorted({*old, *new})
    if old.get("identity") != new.get("identity"):  # identities of two schemes have nothing else to compare
        paths = ["identity"]
    for path in paths:
        if path not in COMPARABLE and old.get(path) != new.get(path):
            yield f"{path} {' → '.join(textwrap.shorten(value_text(side, path), 40) for side in (old, new))}"


def value_text(identity: JsonObject, path: str) -> str:
    """What a flat identity holds at a path; parameters that it lacks have their default."""
    if path not in identity and ".parameters." in path:
        return "default"
    return json.dumps(identity.get(path), ensure_ascii=False)


def _steps(identity: JsonObject, eps: float) -> list[float]:
    """What decided the result at this ε: on a ladder, an input beaten at a smaller one counts as beaten at this one."""
    return [value for value in map(float, identity["eps"]) if value <= eps] if identity["ladder"] else [eps]


def flat(tree: JsonObject, above: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of nested dicts with their dotted paths."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
