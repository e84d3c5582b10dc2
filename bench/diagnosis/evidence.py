"""What the masking diagnosis knows of a defense, and how it compares attacks on it.

Differences are judged per input: a check fails only where they are significant (`ALPHA`), and warns where they may be
chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from manifold_bench.bench.metrics.shares import wilson
from manifold_bench.bench.records.schema import PROBE
from manifold_bench.bench.text import eps_text, norm_text
from manifold_bench.defenses.identity import JsonObject

Result = Literal["pass", "warn", "fail", "not run"]

ORDER: tuple[Result, ...] = ("not run", "pass", "warn", "fail")

ALPHA = 0.01
"""A check fails where chance would do that less often, over all of its comparisons together."""

ALPHA_WARN = 0.05

BALLS = ("linf", "l2", "l0")
"""Norms in which a larger ε allows all that a smaller one does."""

ITERATIVE, SINGLE_STEP, TRANSFER, NOISE, QUERY = "iterative", "single-step", "transfer", "noise", "query"
"""What an attack is to the checks."""

MORE = f"{PROBE}more"


class Finding(NamedTuple):
    """The result of a check, and the numbers behind it."""

    result: Result
    evidence: str


class NotRun(Exception):
    """A check could not run, for the reason that is the message."""


NOT_PROBED = "this run has no probes; run it again with --diagnose"


@dataclass(frozen=True)
class Evidence:
    """All that is known of one defense on one data set.

    records: the rows of the defense, those of probes included. Two columns are added: `role`, what the attack is to the
    checks (ITERATIVE, SINGLE_STEP, …, or ""), and `ladder`, whether it attacked only what smaller ε left.
    undefended: what the attacks of the transfer probe did to the model on which they were made; None where that is not
    in the run, or is this defense.
    inspections: stored results of inspections by name. num_classes: number of classes of the data set.
    """

    records: pd.DataFrame
    undefended: pd.DataFrame | None
    inspections: Mapping[str, JsonObject]
    num_classes: int

    @property
    def ok(self) -> pd.DataFrame:
        """The rows of cells that ran."""
        return self.records[self.records["status"] == "ok"]

    def missing(self, *labels: str) -> str:
        """Why the probes of those names are not there."""
        for label in labels:
            rows = self.records[self.records["attack"] == PROBE + label]
            if len(rows) and rows["status"].iloc[0] != "ok":
                return f"{rows['status'].iloc[0]}: {rows['reason'].iloc[0]}"
        return NOT_PROBED

    def inspection(self, name: str, *counts: str) -> list[int]:
        """Those of the values of an inspection, all of them counts; raises NotRun."""
        result = self.inspections.get(name)
        if result is None:
            raise NotRun(NOT_PROBED)
        if result["status"] != "ok":
            raise NotRun(f"{result['status']}: {result['reason']}")
        values = [result["values"].get(count, -1.0) for count in counts]
        for count, value in zip(counts, values, strict=True):
            if not 0 <= value < 2**31:
                raise NotRun(f"stored without a count {count!r}: take it again")
        return [int(value) for value in values]


# --- comparing attacks -----------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """Inputs that only one of two attacks beat, of n that both attacked."""

    where: str
    n: int
    only_weaker: int
    only_stronger: int

    @property
    def p(self) -> float:
        """How often chance alone would favour the weaker one as much (exact McNemar, one-sided)."""
        return binomial(self.only_weaker, self.only_weaker + self.only_stronger, 0.5)


def binomial(k: int, n: int, p: float, alternative: str = "greater") -> float:
    if k > n:
        raise NotRun(f"the stored counts contradict each other: {k} of {n}")
    return float(binomtest(int(k), int(n), p, alternative=alternative).pvalue) if n else 1.0


def beaten_within(rows: pd.DataFrame, eps: float) -> pd.Series:
    """Whether any row within ε beat the input; by sample, of the samples attacked at ε itself."""
    at = rows.loc[np.isclose(rows["eps"], eps), "sample"].unique()
    within = rows[(rows["eps"] <= eps * (1 + 1e-9)) & rows["sample"].isin(at)]
    return within.groupby("sample")["success"].any()


def compared_by_role(ok: pd.DataFrame, weaker: str, stronger: Iterable[str]) -> list[Comparison]:
    """At every norm and ε at which attacks of both roles ran: over the inputs that both attacked."""
    found = []
    for norm, rows in ok[ok["norm"].isin(BALLS)].groupby("norm"):
        weak, strong = rows[rows["role"] == weaker], rows[rows["role"].isin(list(stronger))]
        for eps in sorted(set(weak["eps"]) & set(strong["eps"])):
            one, other = beaten_within(weak, eps).align(beaten_within(strong, eps), join="inner")
            if len(one):
                where = f"{norm_text(str(norm))} ε = {eps_text(eps)}"
                found.append(Comparison(where, len(one), int((one & ~other).sum()), int((other & ~one).sum())))
    return found


def judged(comparisons: list[Comparison], told: str, most: Result = "fail") -> Finding:
    """The worst of several comparisons. told: with places for the two counts; most: how bad it may get."""
    worst = min(comparisons, key=lambda c: (c.p, -c.n))
    result: Result = "pass"
    if worst.p < ALPHA_WARN:
        result = "fail" if worst.p * len(comparisons) < ALPHA and most == "fail" else "warn"
    among = f", the worst of {len(comparisons)} comparisons" if len(comparisons) > 1 else ""
    counts = told.format(worst.only_weaker, worst.only_stronger)
    return Finding(result, f"{worst.where}, n = {worst.n}: {counts} (p = {worst.p:.2g}{among})")


def worst_of(findings: list[Finding]) -> Finding:
    """The worst result, with everything that was found."""
    return Finding(
        max((f.result for f in findings), key=ORDER.index), "; ".join(dict.fromkeys(f.evidence for f in findings))
    )


def share_text(count: int, n: int) -> str:
    """12 of 50 (24 % [14, 37])."""
    share = wilson(count, n)
    return f"{count} of {n} ({100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}])"
