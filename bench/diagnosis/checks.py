"""The checks of the masking diagnosis: each a function of records and inspections, with its evidence in numbers.

An attack that loses to a weaker one, or that finds nothing where something is known to be, says nothing about the
defense (Athalye et al. 2018, Carlini et al. 2019, Zimmermann et al. 2022). docs/diagnosis.md explains each check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

from manifold_bench.bench.diagnosis.evidence import (
    ALPHA,
    ALPHA_WARN,
    BALLS,
    ITERATIVE,
    MORE,
    NOISE,
    QUERY,
    SINGLE_STEP,
    TRANSFER,
    Comparison,
    Evidence,
    Finding,
    NotRun,
    Result,
    beaten_within,
    binomial,
    compared_by_role,
    judged,
    share_text,
    worst_of,
)
from manifold_bench.bench.metrics.robustness import REJECTED, RIGHT, outcomes, robust
from manifold_bench.bench.metrics.shares import wilson
from manifold_bench.bench.planning.probes import LARGE
from manifold_bench.bench.records.schema import CLEAN, PROBE, UNSTEADY
from manifold_bench.bench.text import eps_text, norm_text

FEW = 8
"""Inputs below which a share of none is chance."""


class Check(NamedTuple):
    """A check: its title says what should hold, its meaning what follows where it doesn't.

    find: raises NotRun where there is nothing to look at.
    """

    title: str
    meaning: str
    find: Callable[[Evidence], Finding]

    def finding(self, evidence: Evidence) -> Finding:
        try:
            return self.find(evidence)
        except NotRun as reason:
            return Finding("not run", str(reason))


CHECKS: dict[str, Check] = {}
"""Every check by the name of its function, in the order of the table."""


def check(title: str, meaning: str) -> Callable[[Callable[[Evidence], Finding]], Callable[[Evidence], Finding]]:
    """Adds the function below to the checks."""

    def add(find: Callable[[Evidence], Finding]) -> Callable[[Evidence], Finding]:
        CHECKS[find.__name__] = Check(title, meaning, find)
        return find

    return add


def beyond_chance(count: int, n: int, shares: tuple[float, float], told: str) -> Finding:
    """fail, or else warn, where `count` of n is more than chance makes of that share of inputs; shares: of the two."""
    failing, warning = shares
    if binomial(count, n, failing) < ALPHA:
        return Finding("fail", told)
    return Finding("warn" if binomial(count, n, warning) < ALPHA_WARN else "pass", told)


@check(
    "iterative attacks beat single-step ones",
    "Many small steps see all that one large step sees. Where one step does better the gradients lead nowhere: "
    "attack through a smooth replacement of what breaks them, or without gradients.",
)
def iterative(e: Evidence) -> Finding:
    compared = compared_by_role(e.ok, SINGLE_STEP, [ITERATIVE])
    if not compared:
        raise NotRun(e.missing("pgd", "fgsm"))
    return judged(compared, "{} fall to a single step alone, {} to iterative attacks alone")


@check(
    "success does not fall as ε grows",
    "A larger ball holds every perturbation of a smaller one. Where success falls the attack gets lost: lower its "
    "step size, raise its steps, or start it from the smaller ε's result (ladder = true).",
)
def monotone(e: Evidence) -> Finding:
    alone = e.ok[~e.ok["ladder"] & (e.ok["role"] == ITERATIVE) & e.ok["norm"].isin(BALLS)]
    compared = []
    for (attack, norm), rows in alone.groupby(["attack", "norm"]):
        sizes = sorted(rows["eps"].unique())
        for small, large in pairwise(sizes):
            at = [rows[rows["eps"] == eps].groupby("sample")["success"].any() for eps in (small, large)]
            one, other = at[0].align(at[1], join="inner")
            name = str(attack).removeprefix(PROBE)
            where = f"{name}, {norm_text(str(norm))} ε = {eps_text(small)} against {eps_text(large)}"
            compared.append(Comparison(where, len(one), int((one & ~other).sum()), int((other & ~one).sum())))
    if not compared:
        raise NotRun(f"{e.missing('pgd')}; a ladder of ε never falls, whatever the defense")
    return judged(compared, "{} fall at the smaller ε alone, {} at the larger alone")


def _left(e: Evidence, eps: float) -> tuple[int, int, int, float] | None:
    """Of inputs attacked iteratively in L∞ at ε: how many, robust, strictly robust, share of the commonest label."""
    rows = e.ok[(e.ok["norm"] == "linf") & (e.ok["eps"] <= eps)]
    samples = rows.loc[(rows["role"] == ITERATIVE) & (rows["eps"] == eps), "sample"].unique()
    rows = rows[rows["sample"].isin(samples)]
    if not len(rows):
        return None
    is_robust = robust(rows)
    both = pd.DataFrame({"robust": is_robust, "strict": is_robust & (outcomes(rows) != REJECTED)})
    held = both.groupby(rows["sample"]).all()
    commonest = rows.groupby("sample")["label"].first().value_counts(normalize=True).iloc[0]
    return len(held), int(held["robust"].sum()), int(held["strict"].sum()), float(commonest)


@check(
    "ε = 0.5 in L∞ brings accuracy to chance",
    "Every image can be made grey. What is still accepted and right then was not attacked. Rejecting is no fault "
    "here, since everything may be rejected.",
)
def half(e: Evidence) -> Finding:
    left = _left(e, 0.5)
    if left is None:
        raise NotRun(e.missing("large"))
    n, robust, strict, commonest = left
    chance = max(1 / e.num_classes, commonest)
    bad = binomial(strict, n, chance) < ALPHA
    told = f"accepted and right at L∞ ε = 0.5: {share_text(strict, n)}, chance is {100 * chance:.0f} %"
    if robust > strict:
        told += f"; {robust - strict} more are rejected (which is allowed)"
    return Finding("fail" if bad else "pass", told)


@check(
    "an unbounded attack reaches everything",
    "With any image allowed, one of another class that the defense accepts always exists. An attack that doesn't "
    "find it finds nothing at smaller ε either; if it is only rejected, use attacks that mind the detector.",
)
def unbounded(e: Evidence) -> Finding:
    left = _left(e, 1.0)
    if left is None:
        raise NotRun(e.missing("large"))
    n, robust, strict, _ = left
    told = f"accepted and right when any image is allowed: {share_text(strict, n)}; never accepted and wrong: {robust}"
    if binomial(strict, n, 0.05) < ALPHA:
        return Finding("fail", told)
    if binomial(robust, n, 0.05) < ALPHA:
        return Finding("warn", f"{told}: this attack gets itself rejected")
    return Finding("pass", told)


@check(
    "white-box ≥ transfer ≥ random noise",
    "An attacker who knows the defense can do whatever one who doesn't can. Where he does worse, his gradients "
    "are masked: the figures of white-box attacks are not the defense's robustness.",
)
def order(e: Evidence) -> Finding:
    pairs: list[tuple[str, list[str], str, Result]] = [
        (TRANSFER, [ITERATIVE], "{} fall to attacks made on another model alone, {} to white-box ones alone", "fail"),
        (NOISE, [ITERATIVE], "{} fall to random noise alone, {} to white-box attacks alone", "fail"),
        (NOISE, [TRANSFER], "{} fall to random noise alone, {} to attacks made on another model alone", "warn"),
    ]
    findings = []
    for weaker, stronger, told, most in pairs:
        if compared := compared_by_role(e.ok, weaker, stronger):
            findings.append(judged(compared, told, most))
    if not findings:
        raise NotRun(e.missing("pgd", "transfer", "noise"))
    if not (e.ok["role"] == TRANSFER).any():
        findings.append(Finding("not run", f"no transfer: {e.missing('transfer')}"))
    return worst_of(findings)


@check(
    "query-based attacks don't beat white-box ones",
    "Queries are a poor man's gradients. Where they win, the true gradients are masked or the loss saturates.",
)
def query(e: Evidence) -> Finding:
    compared = compared_by_role(e.ok, QUERY, [ITERATIVE, SINGLE_STEP])
    if not compared:
        raise NotRun(e.missing("query", "pgd"))
    return judged(compared, "{} fall to queries alone, {} to white-box attacks alone")


@check(
    "gradients are neither zero nor non-finite (at most 1 % of inputs)",
    "Without a gradient an attack stays at its random start. Zero for the loss but not for the margin: the loss "
    "saturates, attack the margin. Zero for both, or not there: attack through a differentiable replacement.",
)
def gradients(e: Evidence) -> Finding:
    n, zero, none, nonfinite, margin = e.inspection("gradients", "n", "zero", "none", "nonfinite", "zero_margin")
    bad = zero + none + nonfinite
    told = f"zero for {share_text(zero, n)}, not finite for {nonfinite}, not there for {none}"
    if zero and not none:
        told += f"; the margin's zero for {margin}"
    if bad <= 0.01 * n:
        return Finding("pass", told)
    return Finding("fail" if binomial(bad, n, 0.01) < ALPHA else "warn", told)


@check(
    "more steps and restarts gain less than 1 pp",
    "An attack that gains by being run longer had not finished: raise the matrix' steps and restarts until it "
    "doesn't. Fails where the gain is surely more than 5 pp.",
)
def more(e: Evidence) -> Finding:
    rows = e.ok[e.ok["attack"] == MORE]
    if not len(rows):
        raise NotRun(e.missing("more"))
    norm, eps = rows["norm"].iloc[0], rows["eps"].iloc[0]
    known = e.ok[(e.ok["norm"] == norm) & (e.ok["attack"] != MORE) & (e.ok["kind"] != CLEAN)]
    gained, before = beaten_within(rows, eps).align(beaten_within(known, eps), join="inner")
    n, gain = len(gained), int((gained & ~before).sum())
    if not n:
        raise NotRun(e.missing("pgd"))
    share = wilson(gain, n)
    told = f"{norm_text(norm)} ε = {eps_text(eps)}: {share_text(gain, n)} fall to more steps and restarts alone"
    if share.high >= 0.01:
        told += f"; n = {n} can't show a gain below 1 pp, n ≥ 381 could"
    return beyond_chance(gain, n, (0.05, 0.01), told)


@check(
    "the loss has come to rest in the last tenth of the steps",
    "A loss that still rises needs more steps; one that never rose has no gradient to follow.",
)
def moving(e: Evidence) -> Finding:
    n, unbeaten, rising, flat = e.inspection("progress", "n", "unbeaten", "moving", "flat")
    told = f"{unbeaten} of {n} inputs are not beaten; the loss still rises for {rising} of them, never rose for {flat}"
    if not unbeaten:
        return Finding("pass", told)
    share = max(rising, flat)
    return beyond_chance(share, unbeaten, (0.5, 0.1), told)


@check(
    "the same question gets the same answer",
    "Answers that change without being declared as randomized, or with the batch, make success a matter of luck: "
    "declare `randomized`, judge with draws > 1 and attack the expectation; or mend the batch dependence.",
)
def repeats(e: Evidence) -> Finding:
    try:
        n, again, alone, alone_n, others, others_n, uneven, optimises, randomized = e.inspection(
            "repeats", "n", "again", "alone", "alone_n", "others", "others_n", "uneven", "optimises", "randomized"
        )
    except NotRun:
        remarks = "; ".join(e.ok.loc[e.ok["kind"] == CLEAN, "reason"].unique()).split("; ")
        unsteady = next((remark for remark in remarks if remark.startswith(UNSTEADY)), None)
        if unsteady is None:
            raise
        return Finding("fail", f"the first eight inputs: {unsteady}")
    told = (
        f"{again} of {n} answers change when asked again, {alone} of {alone_n} when asked alone; {others} of "
        f"{others_n} change in some bit with the other images of their batch"
    )
    if randomized:
        return Finding("warn" if again else "pass", f"declared as randomized; {told}")
    # A search inside may let images leave its batch, whose size then depends on the other images
    rounding = uneven > 0 and not again and (not others or optimises > 0)
    if rounding and (alone or others):
        return Finding("warn", f"{told}: by rounding, which differs with the size of the batch in {uneven} layers here")
    return Finding("fail" if again or alone or others else "pass", told)


@check(
    "planted adversarial examples are found (at least 95 %)",
    "The examples are known to exist. PGD as it stands misses them, so what it misses elsewhere proves nothing: "
    "adapt the attack until it finds these (Zimmermann et al. 2022). Where random points find them too the test "
    "says little.",
)
def planted(e: Evidence) -> Finding:
    n, made, found, chance, shrunk = e.inspection("planted", "n", "planted", "found", "random", "shrunk")
    if made < max(1, n / 2):
        raise NotRun(f"an example could be planted around {made} of {n} inputs only")
    told = f"{share_text(found, made)} found, {chance} by as many random points; planted around {made} of {n} inputs"
    if shrunk:
        told += f", {shrunk} of them in a smaller ball, which the detector accepts"
    if binomial(found, made, 0.95, "less") < ALPHA:
        return Finding("fail", told)
    return Finding("warn" if found < 0.95 * made or chance > made / 2 else "pass", told)


@check(
    "at least as robust as the undefended model under transfer",
    "A defense that loses more than none to attacks made on the model without it takes away more than it gives.",
)
def undefended(e: Evidence) -> Finding:
    mine = e.ok[e.ok["attack"] == f"{PROBE}transfer"]
    if not len(mine):
        raise NotRun(e.missing("transfer"))
    if e.undefended is None:
        raise NotRun("the undefended model is this one, or not in this run")
    compared = []
    for eps in sorted(set(mine["eps"]) & set(e.undefended["eps"])):
        lost, other = (
            (~robust(rows)).groupby(rows["sample"]).any()
            for rows in (side[side["eps"] == eps] for side in (mine, e.undefended))
        )
        lost, other = lost.align(other, join="inner")
        where = f"{norm_text(mine['norm'].iloc[0])} ε = {eps_text(eps)}"
        compared.append(Comparison(where, len(lost), int((lost & ~other).sum()), int((other & ~lost).sum())))
    if not compared:
        raise NotRun("it was not attacked at the same ε as the undefended model")
    return judged(compared, "{} are lost by this defense alone, {} by the undefended model alone")


@check(
    "clean inputs are accepted",
    "Rejecting is cheap: what rejects everything is never accepted and wrong. Read its robust accuracy beside the "
    "strict one and the coverage, or set its threshold at a stated false-rejection rate.",
)
def accepts(e: Evidence) -> Finding:
    clean = e.ok[e.ok["kind"] == CLEAN]
    if not len(clean):
        raise NotRun("the clean pass did not run")
    outcome = outcomes(clean)
    rejected, n = int((outcome == REJECTED).sum()), len(clean)
    told = f"clean inputs rejected: {share_text(rejected, n)}; accepted and right: {int((outcome == RIGHT).sum())}"
    return beyond_chance(rejected, n, (0.5, 0.1), told)


@check(
    "attacks find images that the defense accepts",
    "Where every attacked image is rejected and none succeeds, the attacks fought the detector and lost: that says "
    "nothing about images that it accepts. Use attacks that mind the detector (selective-pgd), and look at `noise` and "
    "`grid`. The robust accuracy there is no figure.",
)
def reached(e: Evidence) -> Finding:
    ran = (e.ok["role"] == ITERATIVE) & e.ok["norm"].isin(BALLS) & ~e.ok["clean_rejected"].astype(bool)
    rows = e.ok[ran & ((e.ok["norm"] != "linf") | (e.ok["eps"] < min(LARGE)))]
    found = []
    for _, at in rows.groupby(["norm", "eps"]):
        accepted = ((outcomes(at) != REJECTED) | at["success"]).groupby(at["sample"]).any()
        count, n = int(accepted.sum()), len(accepted)
        where = f"{norm_text(at['norm'].iloc[0])} ε = {eps_text(at['eps'].iloc[0])}"
        told = f"{where}: {share_text(count, n)} accepted when attacked"
        found.append((count / n, Finding("fail" if count == 0 and n >= FEW else "pass", told)))
    if not found:
        raise NotRun(e.missing("pgd"))
    return min(found, key=lambda one: one[0])[1]


@check(
    "harmless noise is accepted (half a grey level)",
    "A detector that rejects what nobody can tell from the clean image looks at how attacks write their images, not at "
    "what is in them: an attacker who rounds passes it. It would reject the same photograph in another format.",
)
def noise(e: Evidence) -> Finding:
    n, rejected = e.inspection("repeats", "noisy_n", "noisy")
    told = f"accepted when clean, rejected with noise of half a grey level: {share_text(rejected, n)}"
    if not n:
        raise NotRun("no clean input is accepted")
    return beyond_chance(rejected, n, (0.1, 0.02), told)


@check(
    "rounding an attack's output to the data's grid gains nothing",
    "Images come in whole grey levels. Where a rounded output succeeds and the exact one does not, the defense tells "
    "attacks by their fractions of levels: round what every attack returns.",
)
def grid(e: Evidence) -> Finding:
    n, rounded = e.inspection("progress", "n", "rounded")
    told = f"beaten only by the rounded end of an ascent: {share_text(rounded, n)}"
    return beyond_chance(rounded, n, (0.01, 0.01), told)


def overall(results: Mapping[str, Result]) -> Result:
    """fail or warn where any check does; else pass, or not run where most checks could not; results: by check.

    `planted` alone shows that the attack can find something: where it could not run there is no pass, only a warning.
    """
    found = list(results.values())
    for bad in ("fail", "warn"):
        if bad in found:
            return bad
    if 2 * found.count("pass") <= len(found):
        return "not run"
    return "pass" if results["planted"] == "pass" else "warn"
