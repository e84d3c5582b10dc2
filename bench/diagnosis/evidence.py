"""The evidence on which the gradient-masking diagnosis is based, and comparisons of attacks on the same inputs.

A check fails only where a difference is significant at the level ALPHA, and warns at the level ALPHA_WARN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.shares import binomial_tail, wilson
from manifold_bench.bench.records.schema import PROBE
from manifold_bench.bench.text import eps_text, norm_text
from manifold_bench.defenses.identity import JsonObject

Result = Literal["pass", "warn", "fail", "not run"]

ORDER: tuple[Result, ...] = ("not run", "pass", "warn", "fail")

ALPHA = 0.01
"""Significance level at which a check fails, over all of its comparisons together."""

ALPHA_WARN = 0.05
"""Significance level at which a check warns, for each comparison alone."""

BALLS = ("linf", "l2", "l1", "l0")
"""Norms in which the ball of a larger ε contains that of a smaller one."""

ITERATIVE, SINGLE_STEP, TRANSFER, NOISE, QUERY = "iterative", "single-step", "transfer", "noise", "query"
"""Roles of attacks in the checks."""

MORE = f"{PROBE}more"

FIRST = "the first inputs: "
"""Beginning of the evidence that is a remark of the clean pass."""


class Finding(NamedTuple):
    """The result of a check. evidence: the numbers on which it is based, in words."""

    result: Result
    evidence: str


class NotRun(Exception):
    """Raised where a check cannot run; the message is the reason."""


NOT_PROBED = "the diagnosis was not run; run again with --diagnose"


@dataclass(frozen=True)
class Evidence:
    """The evidence on one defense on one data set.

    records: per-input records of the defense, including those of probes (the diagnosis' own attacks), with two further
    columns: `role`, the role of the attack (ITERATIVE, SINGLE_STEP, … or ""), and `ladder`, whether it attacked only
    the inputs that it had not beaten at smaller ε.
    undefended: records of the transfer probe on the model on which its images were made; None where that model is not
    in the run, or is this defense.
    inspections: name → stored result of an inspection. num_classes: number of classes of the data set.
    """

    records: pd.DataFrame
    undefended: pd.DataFrame | None
    inspections: Mapping[str, JsonObject]
    num_classes: int

    @cached_property
    def ok(self) -> pd.DataFrame:
        """The records whose status is ok."""
        return self.records[self.records["status"] == "ok"]

    @cached_property
    def of_role(self) -> dict[str, dict[str, pd.DataFrame]]:
        """Norm → role → ε, sample and success of the finished cells of its attacks, for norms in BALLS."""
        ok = self.ok[["norm", "role", "eps", "sample", "success"]]
        found: dict[str, dict[str, pd.DataFrame]] = {}
        for (norm, role), rows in ok[ok["norm"].isin(BALLS)].groupby(["norm", "role"]):
            found.setdefault(str(norm), {})[str(role)] = rows[["eps", "sample", "success"]]
        return found

    def missing(self, *labels: str) -> str:
        """Return the reason why the probes with these names have no records that are ok."""
        for label in labels:
            status, reason = self._states.get(PROBE + label, ("ok", ""))
            if status != "ok":
                return f"{status}: {reason}"
        return NOT_PROBED

    @cached_property
    def _states(self) -> dict[str, tuple[str, str]]:
        """Attack → status and reason of its first record."""
        first = self.records.drop_duplicates("attack")
        return dict(zip(first["attack"], zip(first["status"], first["reason"], strict=True), strict=True))

    def inspection(self, name: str, *counts: str) -> list[int]:
        """Return these values of an inspection, which are all counts.

        Raises NotRun where the inspection is missing, failed or was skipped, or where a value is not a count.
        """
        result = self.inspections.get(name)
        if result is None:
            raise NotRun(NOT_PROBED)
        if result["status"] != "ok":
            raise NotRun(f"{result['status']}: {result['reason']}")
        values = [result["values"].get(count, -1.0) for count in counts]
        for count, value in zip(counts, values, strict=True):
            if not 0 <= value < 2**31:
                raise NotRun(f"the stored inspection has no valid count {count!r}; run again with --diagnose")
        return [int(value) for value in values]


# --- comparing attacks -----------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """The comparison of two attacks on the n inputs that both attacked.

    where: norm and ε, as text. only_weaker, only_stronger: number of inputs beaten only by the weaker attack, and only
    by the stronger one.
    """

    where: str
    n: int
    only_weaker: int
    only_stronger: int

    @classmethod
    def of(cls, where: str, weaker: pd.Series, stronger: pd.Series) -> Comparison:
        """Return the comparison on the samples that both have. weaker, stronger: whether each beat a sample."""
        one, other = weaker.align(stronger, join="inner")
        return cls(where, len(one), int((one & ~other).sum()), int((other & ~one).sum()))

    @property
    def p(self) -> float:
        """One-sided p of the exact McNemar test: the probability of such an advantage by chance."""
        return binomial(self.only_weaker, self.only_weaker + self.only_stronger, 0.5)


def binomial(k: int, n: int, p: float, alternative: Literal["greater", "less"] = "greater") -> float:
    """Return the one-sided p-value of the exact binomial test of k successes in n trials; 1 for n = 0.

    alternative: "greater" or "less", what the share of successes is than p if the null hypothesis is wrong. Raises
    NotRun where k > n.
    """
    if k > n:
        raise NotRun(f"the stored counts contradict each other: {k} of {n}")
    return binomial_tail(int(k), int(n), p) if alternative == "greater" else binomial_tail(int(n - k), int(n), 1 - p)


def beaten_within(rows: pd.DataFrame, eps: float) -> pd.Series:
    """Return by sample, for the samples attacked at ε, whether any row at this ε or a smaller one beat it."""
    sizes, samples = rows["eps"].to_numpy(), rows["sample"].to_numpy()
    within = (sizes <= eps * (1 + 1e-9)) & np.isin(samples, samples[np.isclose(sizes, eps)])
    return pd.Series(rows["success"].to_numpy()[within]).groupby(samples[within]).any()


def compared_by_role(e: Evidence, weaker: str, stronger: Iterable[str]) -> list[Comparison]:
    """Compare how many inputs the attacks of a weaker role beat with what those of stronger roles beat together.

    The role of an attack, such as SINGLE_STEP or ITERATIVE, is what it shows in the diagnosis. There is one comparison
    for each norm and ε at which attacks of the weaker role and of a stronger one ran.
    """
    found = []
    for norm, of_role in e.of_role.items():
        there = [of_role[role] for role in stronger if role in of_role]
        if weaker not in of_role or not there:
            continue
        weak, strong = of_role[weaker], pd.concat(there)
        for eps in sorted(set(weak["eps"]) & set(strong["eps"])):
            where = f"{norm_text(norm)} ε = {eps_text(eps)}"
            found.append(Comparison.of(where, beaten_within(weak, eps), beaten_within(strong, eps)))
    return [one for one in found if one.n]


def beyond_chance(count: int, n: int, shares: tuple[float, float], text: str) -> Finding:
    """Return a finding by whether `count` of n inputs is significantly more than a share of them.

    shares: the share above which the check fails, and the one above which it warns. text: the evidence.
    """
    failing, warning = shares
    if binomial(count, n, failing) < ALPHA:
        return Finding("fail", text)
    return Finding("warn" if binomial(count, n, warning) < ALPHA_WARN else "pass", text)


def worst_finding(comparisons: list[Comparison], text: str, most: Result = "fail") -> Finding:
    """Return the finding on the worst of several comparisons.

    text: the evidence, with {} in place of the counts only_weaker and only_stronger. most: worst possible result.
    """
    worst = min(comparisons, key=lambda c: (c.p, -c.n))
    result: Result = "pass"
    if worst.p < ALPHA_WARN:
        result = "fail" if worst.p * len(comparisons) < ALPHA and most == "fail" else "warn"
    among = f", the worst of {len(comparisons)} comparisons" if len(comparisons) > 1 else ""
    counts = text.format(worst.only_weaker, worst.only_stronger)
    return Finding(result, f"{worst.where}, n = {worst.n}: {counts} (p = {worst.p:.2g}{among})")


def worst_of(findings: list[Finding]) -> Finding:
    """Return the worst of several results, with the evidence of all."""
    return Finding(
        max((f.result for f in findings), key=ORDER.index), "; ".join(dict.fromkeys(f.evidence for f in findings))
    )


def share_text(count: int, n: int) -> str:
    """Return a count with its share and 95 % Wilson interval in percent: `12 of 50 (24 % [14, 37])`."""
    share = wilson(count, n)
    return f"{count} of {n} ({100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}])"
