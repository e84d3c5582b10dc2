"""Limits on how much worse a figure may get between two runs: `robust_accuracy:2pp`, `error:5%`, `seconds:1.5x`."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.metrics import robustness as figures
from manifold_bench.bench.metrics.paired import Comparison, shared_rows
from manifold_bench.bench.metrics.summary import attacked_within
from manifold_bench.bench.records.results import Cell, Results
from manifold_bench.bench.records.schema import ATTACK, CALIBRATION, CLEAN, WORST_CASE
from manifold_bench.bench.text import distance_text, nearest, percent


@dataclass(frozen=True)
class Figure:
    """A figure on which a limit can be set.

    of: function of the rows, all ok, of one cell or of a worst case that returns its value, NaN where it is undefined.
    worse: whether lower or higher values are worse. text: function that formats a value. noise: differences up to this
    size are ignored.
    """

    of: Callable[[pd.DataFrame], float]
    worse: Literal["lower", "higher"]
    text: Callable[[float], str] = percent
    noise: float = 0.0

    @property
    def is_share(self) -> bool:
        """Whether its values are shares in [0, 1]."""
        return self.text is percent


def _clean_rejection(rows: pd.DataFrame) -> float:
    """Return the share of clean inputs that are rejected; NaN for attacks, whose rejection is neither good nor bad."""
    return figures.rejection(rows).value if (rows["kind"] == CLEAN).all() else math.nan


def _median_distance(rows: pd.DataFrame) -> float:
    """Return the median distance, without perturbations larger than the cell's ε: those belong to other cells."""
    return figures.median_distance(rows.assign(distance=rows["distance"].where(rows["success"], math.inf)))


def _passes(rows: pd.DataFrame) -> float:
    """Return the number of forward and backward passes per input."""
    passes = (rows["forwards"] + rows["backwards"]).sum()
    return float(passes / figures.inputs_of(rows).nunique()) if len(rows) else math.nan


def _seconds(rows: pd.DataFrame) -> float:
    return float(rows["seconds"].sum()) if len(rows) else math.nan


FIGURES = {
    "robust_accuracy": Figure(lambda rows: figures.robust_accuracy(rows).value, "lower"),
    "strict_robust_accuracy": Figure(lambda rows: figures.strict_robust_accuracy(rows).value, "lower"),
    "accuracy": Figure(lambda rows: figures.accuracy(rows).value, "lower"),
    "accuracy_without_rejection": Figure(lambda rows: figures.accuracy_without_rejection(rows).value, "lower"),
    "error": Figure(lambda rows: figures.error(rows).value, "higher"),
    "rejection": Figure(_clean_rejection, "higher"),
    "median_distance": Figure(_median_distance, "lower", distance_text),
    "passes": Figure(_passes, "higher", lambda value: f"{value:,.1f}"),
    "seconds": Figure(_seconds, "higher", lambda value: f"{value:,.2f}", noise=1.0),
}

LIMITS = "2pp (percentage points), 5% (of the baseline's figure) or 1.5x (times as bad)"


@dataclass(frozen=True)
class Limit:
    """How much worse a figure may get.

    amount: percentage points (unit pp), percent of the baseline's value (unit %), or a factor (unit x).
    """

    figure: str
    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Return the limit that FIGURE:LIMIT on the command line means; raises InputError for any other text."""
        name, colon, limit = text.partition(":")
        size = re.fullmatch(r"(\d+(?:\.\d+)?)(pp|%|x)", limit)
        if not colon:
            raise InputError(f"--fail-on: {text!r} is not FIGURE:LIMIT; the limit is {LIMITS}")
        if name not in FIGURES:
            listed = nearest(name, list(FIGURES), f"allowed: {', '.join(FIGURES)}")
            raise InputError(f"--fail-on: unknown figure {name!r}{listed}")
        if not size:
            raise InputError(f"--fail-on: {text!r}: {limit!r} is not a limit; give {LIMITS}")
        amount, unit = float(size[1]), size[2]
        if unit == "pp" and not FIGURES[name].is_share:
            raise InputError(f"--fail-on: {text!r}: {name} is not a share, so pp does not apply; give 5% or 1.5x")
        if unit == "x" and amount < 1:
            raise InputError(f"--fail-on: {text!r}: a factor below 1 is not allowed; give 1.5x or another factor ≥ 1")
        if amount >= 100 and (unit == "pp" or (unit == "%" and FIGURES[name].worse == "lower")):
            raise InputError(f"--fail-on: {text!r} is a limit that nothing can break; give less than 100")
        return cls(name, amount, unit)

    def __str__(self) -> str:
        return f"{self.figure}:{self.amount:g}{self.unit}"

    def broken(self, before: float, after: float) -> bool:
        """Return whether the figure got worse by more than the limit, apart from rounding errors.

        before, after: value in the baseline and in the new run.
        """
        figure = FIGURES[self.figure]
        sign = -1 if figure.worse == "lower" else 1
        if self.unit == "pp":
            bound = before + sign * self.amount / 100
        elif self.unit == "%":
            bound = before * (1 + sign * self.amount / 100)
        else:
            bound = before * self.amount**sign
        if math.isclose(after, bound, rel_tol=1e-9, abs_tol=1e-9) or abs(after - before) <= figure.noise:
            return False
        return after < bound if sign < 0 else after > bound


@dataclass(frozen=True)
class Check:
    """A limit applied to one cell or worst case, on the inputs that both runs share.

    before, after: value in the baseline and in the new run. note: attacks that a worst case is taken over.
    """

    cell: Cell
    limit: Limit
    before: float
    after: float
    note: str = ""

    @property
    def broken(self) -> bool:
        """Whether the figure got worse by more than the limit."""
        return self.limit.broken(self.before, self.after)

    @property
    def texts(self) -> tuple[str, str]:
        """The values before and after as texts; shares are in percent."""
        text = FIGURES[self.limit.figure].text
        return text(self.before), text(self.after)


def check(limits: Sequence[Limit], baseline: Results, new: Results, found: Iterable[Comparison]) -> list[Check]:
    """Check every limit on every cell that could be compared, and on the worst cases over these cells.

    found: result of paired.compare for the two runs. A worst case uses the same attacks and inputs in both runs,
    because an attack that only one run has would look like a change of the defense. Cells for which a figure is
    undefined are left out. The result is in the order of the cells.
    """
    checks = [
        Check(cell, limit, FIGURES[limit.figure].of(was), FIGURES[limit.figure].of(now), note)
        for cell, was, now, note in (_pairs(baseline, new, found) if limits else ())
        for limit in limits
    ]
    return [one for one in checks if not math.isnan(one.before) and not math.isnan(one.after)]


def _pairs(
    baseline: Results, new: Results, found: Iterable[Comparison]
) -> Iterator[tuple[Cell, pd.DataFrame, pd.DataFrame, str]]:
    """Yield cells and worst cases with their rows in each run, and the attacks that a worst case is taken over."""
    attacked = defaultdict(list)
    for cell in sorted(one.cell for one in found if one.p is not None):
        was, now = shared_rows(cell, baseline, new)
        kind = was["kind"].iloc[0]
        if kind != CALIBRATION:
            yield cell, was, now, ""
        dataset, defense, _, norm, _ = cell
        if kind == ATTACK:
            attacked[dataset, defense, norm].append((was, now))
    for (dataset, defense, norm), pairs in attacked.items():
        before, after = pd.concat([was for was, _ in pairs]), pd.concat([now for _, now in pairs])
        for eps in sorted(before["eps"].unique()):
            was, _, over = attacked_within(before, eps)
            now, _, _ = attacked_within(after, eps)
            yield (dataset, defense, WORST_CASE, norm, eps), was, now, over
