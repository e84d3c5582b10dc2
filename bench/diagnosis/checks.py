"""The checks of the gradient-masking diagnosis: each is a function of records and inspections.

An attack that loses to a weaker one, or that misses adversarial examples known to exist, says nothing about the
defense (Athalye et al. 2018, Carlini et al. 2019, Zimmermann et al. 2022). docs/diagnosis.md explains each check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

from manifold_bench.bench.diagnosis.evidence import (
    ALPHA,
    BALLS,
    FIRST,
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
    beyond_chance,
    binomial,
    compared_by_role,
    share_text,
    worst_finding,
    worst_of,
)
from manifold_bench.bench.metrics.robustness import REJECTED, RIGHT, clean_right, outcomes, robust
from manifold_bench.bench.metrics.shares import wilson
from manifold_bench.bench.records.schema import CLEAN, DIVERTED, LARGE, PROBE, UNSTEADY
from manifold_bench.bench.text import eps_text, norm_text

FEW = 8
"""Number of inputs from which on it counts as evidence that none of them was accepted."""


class Check(NamedTuple):
    """A check of the diagnosis.

    title: what should hold. meaning: what follows if it does not hold, and what to do. find: function of the evidence
    that returns the finding; it raises NotRun where the evidence that it needs is missing.
    """

    title: str
    meaning: str
    find: Callable[[Evidence], Finding]

    def finding(self, evidence: Evidence) -> Finding:
        """Run the check; where it cannot run, the result is "not run", and the evidence is the reason."""
        try:
            return self.find(evidence)
        except NotRun as reason:
            return Finding("not run", str(reason))


CHECKS: dict[str, Check] = {}
"""Name of each check (its function's) → the check, in the order in which tables show them."""


def check(title: str, meaning: str) -> Callable[[Callable[[Evidence], Finding]], Callable[[Evidence], Finding]]:
    """Return a decorator that adds a function to CHECKS, under the name of the function.

    title: what should hold, as reports show it. meaning: why it should hold, and what to do where it does not.
    """

    def add(find: Callable[[Evidence], Finding]) -> Callable[[Evidence], Finding]:
        CHECKS[find.__name__] = Check(title, meaning, find)
        return find

    return add


@check(
    "iterative attacks beat single-step ones",
    "An attack with many small steps should beat every input that one large step beats. Where it does not, the "
    "gradients are misleading: attack through a differentiable replacement of the step that breaks them (BPDA), or "
    "without gradients.",
)
def iterative(e: Evidence) -> Finding:
    compared = compared_by_role(e, SINGLE_STEP, [ITERATIVE])
    if not compared:
        raise NotRun(e.missing("pgd", "fgsm"))
    return worst_finding(compared, "{} fall to a single step alone, {} to iterative attacks alone")


@check(
    "success does not fall as ε grows",
    "A larger ball contains every perturbation of a smaller one. Where success falls, the attack does not converge: "
    "lower its step size, raise its steps, or start it from the result of the smaller ε (ladder = true).",
)
def monotone(e: Evidence) -> Finding:
    alone = e.ok[~e.ok["ladder"] & (e.ok["role"] == ITERATIVE) & e.ok["norm"].isin(BALLS)]
    compared = []
    for (attack, norm), rows in alone.groupby(["attack", "norm"]):
        sizes = sorted(rows["eps"].unique())
        for small, large in pairwise(sizes):
            at = [rows[rows["eps"] == eps].groupby("sample")["success"].any() for eps in (small, large)]
            name = str(attack).removeprefix(PROBE)
            where = f"{name}, {norm_text(str(norm))} ε = {eps_text(small)} against {eps_text(large)}"
            compared.append(Comparison.of(where, *at))
    if not compared:
        raise NotRun(f"{e.missing('pgd')}; with ladder = true success cannot fall, whatever the defense")
    return worst_finding(compared, "{} fall at the smaller ε alone, {} at the larger alone")


def _left(e: Evidence, eps: float) -> tuple[int, int, int, float] | None:
    """Return what iterative L∞ attacks at ε leave, None where none ran.

    The result is the number of attacked inputs, of robust ones, of strictly robust ones, and the share of the most
    frequent label.
    """
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
    "With this budget every image can be made uniformly grey, so an input that is still accepted and right was not "
    "really attacked. Rejections count as correct here, because a defense may reject every such image.",
)
def half(e: Evidence) -> Finding:
    left = _left(e, 0.5)
    if left is None:
        raise NotRun(e.missing("large"))
    n, robust, strict, commonest = left
    chance = max(1 / e.num_classes, commonest)
    bad = binomial(strict, n, chance) < ALPHA
    text = f"accepted and right at L∞ ε = 0.5: {share_text(strict, n)}, chance is {100 * chance:.0f} %"
    if robust > strict:
        text += f"; {robust - strict} others are rejected (which is allowed)"
    return Finding("fail" if bad else "pass", text)


@check(
    "an unbounded attack reaches everything",
    "If any image is allowed, there is always one of another class that the defense accepts. An attack that does not "
    "find it proves nothing at smaller ε either. If its images are only rejected, use attacks that take the detector "
    "into account (selective-pgd).",
)
def unbounded(e: Evidence) -> Finding:
    left = _left(e, 1.0)
    if left is None:
        raise NotRun(e.missing("large"))
    n, robust, strict, _ = left
    text = f"accepted and right when any image is allowed: {share_text(strict, n)}; never accepted and wrong: {robust}"
    if binomial(strict, n, 0.05) < ALPHA:
        return Finding("fail", text)
    if binomial(robust, n, 0.05) < ALPHA:
        return Finding("warn", f"{text}; the other attacked images are rejected")
    return Finding("pass", text)


@check(
    "white-box ≥ transfer ≥ random noise",
    "An attacker who knows the defense can do everything that one who does not know it can do. Where white-box attacks "
    "do worse, gradients are masked, and their success rate does not measure the robustness of the defense.",
)
def order(e: Evidence) -> Finding:
    pairs: list[tuple[str, list[str], str, Result]] = [
        (TRANSFER, [ITERATIVE], "{} fall to attacks made on another model alone, {} to white-box ones alone", "fail"),
        (NOISE, [ITERATIVE], "{} fall to random noise alone, {} to white-box attacks alone", "fail"),
        (NOISE, [TRANSFER], "{} fall to random noise alone, {} to attacks made on another model alone", "warn"),
    ]
    findings = []
    for weaker, stronger, text, most in pairs:
        if compared := compared_by_role(e, weaker, stronger):
            findings.append(worst_finding(compared, text, most))
    if not findings:
        raise NotRun(e.missing("pgd", "transfer", "noise"))
    if not (e.ok["role"] == TRANSFER).any():
        findings.append(Finding("not run", f"transfer attacks: {e.missing('transfer')}"))
    return worst_of(findings)


@check(
    "query-based attacks don't beat white-box ones",
    "Queries only approximate gradients. Where they do better, the true gradients are masked or the loss saturates.",
)
def query(e: Evidence) -> Finding:
    compared = compared_by_role(e, QUERY, [ITERATIVE, SINGLE_STEP])
    if not compared:
        raise NotRun(e.missing("query", "pgd"))
    return worst_finding(compared, "{} fall to queries alone, {} to white-box attacks alone")


@check(
    "gradients are neither zero nor non-finite (at most 1 % of inputs)",
    "Without a gradient an attack stays at its random start. If only the gradient of the loss is zero, the loss "
    'saturates: attack the margin of the logits (loss = "margin"). If that of the margin is zero too, or there is no '
    "gradient, attack through a differentiable replacement (BPDA).",
)
def gradients(e: Evidence) -> Finding:
    n, zero, none, nonfinite, margin = e.inspection("gradients", "n", "zero", "none", "nonfinite", "zero_margin")
    bad = zero + none + nonfinite
    text = f"zero for {share_text(zero, n)}, not finite for {nonfinite}, missing for {none}"
    if zero and not none:
        text += f"; the gradient of the margin is zero for {margin}"
    if bad <= 0.01 * n:
        return Finding("pass", text)
    return Finding("fail" if binomial(bad, n, 0.01) < ALPHA else "warn", text)


@check(
    "more steps and restarts gain less than 1 pp",
    "An attack that beats more inputs when it runs longer has not converged: raise the steps and restarts of the "
    "matrix until nothing is gained. The check fails where the gain is significantly above 5 percentage points.",
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
    text = f"{norm_text(norm)} ε = {eps_text(eps)}: {share_text(gain, n)} fall to more steps and restarts alone"
    if share.high >= 0.01:
        text += f"; {n} inputs are too few to exclude a gain of 1 pp, which takes 381"
    return beyond_chance(gain, n, (0.05, 0.01), text)


@check(
    "the loss has converged before the last tenth of the steps",
    "Where the loss still rises, the attack needs more steps. Where it never rose, there is no gradient to follow.",
)
def moving(e: Evidence) -> Finding:
    n, unbeaten, rising, flat = e.inspection("progress", "n", "unbeaten", "moving", "flat")
    text = f"{unbeaten} of {n} inputs are not beaten; the loss still rises for {rising} of them, never rose for {flat}"
    if not unbeaten:
        return Finding("pass", text)
    share = max(rising, flat)
    return beyond_chance(share, unbeaten, (0.5, 0.1), text)


@check(
    "answers to the same image are the same",
    "Answers that change between calls or with the batch make success a matter of luck, and false gradients mislead. "
    "Declare `randomized`, with draws > 1, or an approximate gradient by `mb.bpda`; otherwise mend the model.",
)
def repeats(e: Evidence) -> Finding:
    remarks = "; ".join(e.ok["reason"].unique()).split("; ")
    unsteady = [f"{FIRST}{remark}" for remark in remarks if remark.startswith(UNSTEADY)]
    if unsteady and DIVERTED in unsteady[0]:  # which the inspection may not see
        return Finding("fail", unsteady[0])
    try:
        n, again, alone, alone_n, others, others_n, uneven, optimises, randomized = e.inspection(
            "repeats", "n", "again", "alone", "alone_n", "others", "others_n", "uneven", "optimises", "randomized"
        )
    except NotRun:
        if not unsteady:
            raise
        return Finding("fail", unsteady[0])
    text = f"{again} of {n} answers change in a second call, {alone} of {alone_n} in a batch of one image; {others} of "
    text += f"{others_n} answers or scores change when the other images of the batch are replaced"
    if randomized:
        return Finding("warn" if again else "pass", f"declared as randomized; {text}")
    # A search inside may let images leave its batch, whose size then depends on the other images
    rounding = uneven > 0 and not again and (not others or optimises > 0)
    if rounding and (alone or others):
        return Finding("warn", f"{text}; {uneven} layers round differently for different batch sizes on this machine")
    return Finding("fail" if again or alone or others else "pass", text)


@check(
    "planted adversarial examples are found (at least 95 %)",
    "These adversarial examples are known to exist. If PGD misses them, its failures elsewhere prove nothing: adapt "
    "the attack until it finds them (Zimmermann et al. 2022). If random points find them too, this check says little.",
)
def planted(e: Evidence) -> Finding:
    n, made, found, chance, shrunk = e.inspection("planted", "n", "planted", "found", "random", "shrunk")
    if made < max(1, n / 2):
        raise NotRun(f"an example could only be planted around {made} of {n} inputs")
    text = f"PGD finds {share_text(found, made)}, random points find {chance}; planted around {made} of {n} inputs"
    if shrunk:
        text += f", around {shrunk} of them in a smaller ball, because the detector rejects most of the larger one"
    if binomial(found, made, 0.95, "less") < ALPHA:
        return Finding("fail", text)
    return Finding("warn" if found < 0.95 * made or chance > made / 2 else "pass", text)


@check(
    "at least as robust as the undefended model under transfer",
    "If attacks made on the undefended model beat the defense more often than that model, it does more harm than good.",
)
def undefended(e: Evidence) -> Finding:
    mine = e.ok[e.ok["attack"] == f"{PROBE}transfer"]
    if not len(mine):
        raise NotRun(e.missing("transfer"))
    if e.undefended is None:
        raise NotRun("this is the undefended model, or this run has none")
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
        raise NotRun("this defense and the undefended model were not attacked at the same ε")
    return worst_finding(compared, "{} are lost by this defense alone, {} by the undefended model alone")


@check(
    "clean inputs are accepted",
    "A defense that rejects every image is never accepted and wrong. Read its robust accuracy together with the strict "
    "robust accuracy and the coverage, or set its threshold at a stated false-rejection rate.",
)
def accepts(e: Evidence) -> Finding:
    clean = e.ok[e.ok["kind"] == CLEAN]
    if not len(clean):
        raise NotRun("the clean pass did not run")
    outcome = outcomes(clean)
    rejected, n = int((outcome == REJECTED).sum()), len(clean)
    text = f"clean inputs rejected: {share_text(rejected, n)}; accepted and right: {int((outcome == RIGHT).sum())}"
    return beyond_chance(rejected, n, (0.5, 0.1), text)


@check(
    "attacks find images that the defense accepts",
    "If every attacked image is rejected, the attacks never got past the detector, and the robust accuracy says "
    "nothing about images that it accepts. Use attacks that take the detector into account (selective-pgd), and see "
    "the checks on harmless noise and on rounding.",
)
def reached(e: Evidence) -> Finding:
    # an input that is not right when clean is not attacked, so that its answer, though accepted, is no attack's
    ran = clean_right(e.ok) & (e.ok["role"] == ITERATIVE) & e.ok["norm"].isin(BALLS)
    rows = e.ok[ran & ((e.ok["norm"] != "linf") | (e.ok["eps"] < min(LARGE)))]
    found = []
    for _, at in rows.groupby(["norm", "eps"]):
        accepted = ((outcomes(at) != REJECTED) | at["success"]).groupby(at["sample"]).any()
        count, n = int(accepted.sum()), len(accepted)
        where = f"{norm_text(at['norm'].iloc[0])} ε = {eps_text(at['eps'].iloc[0])}"
        text = f"{where}: {share_text(count, n)} accepted when attacked"
        found.append((count / n, Finding("fail" if count == 0 and n >= FEW else "pass", text)))
    if not found:
        raise NotRun(e.missing("pgd"))
    return min(found, key=lambda one: one[0])[1]


@check(
    "harmless noise is accepted (half a grey level)",
    "A detector that rejects invisible noise looks at pixel values that attacks produce, not at the content of the "
    "image: an attacker who rounds to whole grey levels gets past it, and it would reject the same photograph in "
    "another file format.",
)
def noise(e: Evidence) -> Finding:
    n, rejected = e.inspection("repeats", "noisy_n", "noisy")
    text = f"accepted when clean, rejected with noise of half a grey level: {share_text(rejected, n)}"
    if not n:
        raise NotRun("no clean input is accepted")
    return beyond_chance(rejected, n, (0.1, 0.02), text)


@check(
    "rounding an attack's output to the data's grid gains nothing",
    "Real images have whole grey levels. If a rounded output succeeds where the exact one does not, the defense "
    "recognises attacks by their fractions of grey levels: round the output of every attack.",
)
def grid(e: Evidence) -> Finding:
    n, rounded = e.inspection("progress", "n", "rounded")
    text = f"beaten only when the last point of PGD is rounded: {share_text(rounded, n)}"
    return beyond_chance(rounded, n, (0.01, 0.01), text)


def overall(results: Mapping[str, Result]) -> Result:
    """Return the overall result of a diagnosis. results: name of each check → its result.

    It is fail or warn if any check fails or warns, and "not run" if at most half of the checks passed. Only the check
    `planted` shows that the attack can find adversarial examples, so where it did not run, the result is warn.
    """
    found = list(results.values())
    for bad in ("fail", "warn"):
        if bad in found:
            return bad
    if 2 * found.count("pass") <= len(found):
        return "not run"
    return "pass" if results["planted"] == "pass" else "warn"
