"""What to do next about a defense: advice in a sentence, and the command that follows it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from manifold_bench.bench.metrics.effort import LIMIT, effort_note
from manifold_bench.bench.records.schema import Row
from manifold_bench.bench.report.cures import FROM_SCORES, WRAPPED, cure_of_zero_gradients
from manifold_bench.bench.report.diagnosis import found_text
from manifold_bench.bench.report.steps import ENOUGH, STRONG, Steps
from manifold_bench.bench.text import percent
from manifold_bench.defenses.identity import JsonObject

FIRST_LOOKS = {
    "smoke": "`smoke` tests this benchmark itself and says nothing about a defense.",
    "quick": "`quick` is a first look: few images, no restarts, no AutoAttack, and no attack that uses queries only.",
}
"""Name of a matrix → sentence on what its results do not show."""

WIDE = 0.2
"""Width of a 95 % interval of robust accuracy from which on more images come first."""

FAILED = "Every attack failed, so nothing is known: mend what the reasons name, and run the same again."
"""Advice where no attack ended."""


def next_step(steps: Steps, finding: JsonObject, worst: Sequence[Row]) -> tuple[str, str]:
    """Return advice on what to run next, and the command; the command is empty if every attack failed.

    steps: builder of the commands for this run. finding: what the diagnosis says of the defense. worst: the worst case
    at each norm and ε.
    """
    matrix, diagnosed = steps.matrix, finding["result"]
    happened = {row["status"] for row in worst}
    if happened == {"failed"}:
        return FAILED, ""
    if steps.is_undeclared:
        how = "set the attribute `randomized = True` on it, and `draws = 10` if a matrix file names it"
        if not steps.is_of_command_line:
            how = "say `randomized=True, draws=10` (a Defense or a name has the attribute `randomized = True`)"
        return f"Its answers differ from call to call: {how}, and run again:", steps.declared()
    if any(check["check"] == "repeats" and check["result"] == "fail" for check in finding["checks"]):
        (cause,) = (found_text(check) for check in finding["checks"] if check["check"] == "repeats")
        return f"Mend the model first, because {cause}. Then run again:", steps.same()
    if steps.is_guessing:
        cause = "Without an attack it is no better than guessing, so that these figures say nothing about robustness"
        where = f" (weights in a file are given as {steps.with_weights})" if steps.with_weights else ""
        return f"{cause}: check its weights{where}, normalization and order of classes, and run again:", steps.same()
    if happened == {"skipped"}:
        return _suited(steps)
    if cause := _masked(steps, finding, worst):
        return _unmasked(steps, cause)
    width = max((row["robust_high"] - row["robust_low"] for row in worst if row["robust_accuracy"] >= 0), default=0)
    few = width > WIDE and steps.images < ENOUGH
    more = f"{steps.images} images leave an interval of {100 * width:.0f} points"
    if few and steps.has_all_images:
        return (
            f"{more}, and the data set has no more: add some, at least {ENOUGH} in all, and run again:",
            steps.with_more_images(),
        )
    if matrix != STRONG and steps.can_be_strong:
        advice = f"{FIRST_LOOKS.get(matrix, '')} Run the stronger attacks and the diagnosis of `{STRONG}`:".strip()
        return advice, steps.strong()
    if matrix == STRONG and steps.results.run.get("matrix", {}).get("budget"):
        return "Run it without the budget, which cut it, or with a larger one:", steps.strong()
    if few:
        diagnose = {"diagnose": True} if diagnosed == "not run" else {}
        return f"{more}; use at least {ENOUGH} images, and add some if the data set has fewer:", steps.further(
            n=ENOUGH, **diagnose
        )
    if diagnosed == "not run":
        return "A diagnosis would say whether the attacks worked:", steps.further(diagnose=True)
    advice = "The next step is an attack written for this defense (docs/new_attack.md):"
    return advice, steps.further(attack=["my_attack.py:MyAttack"])


def _attacks(steps: Steps) -> dict[str, JsonObject]:
    """Return the tables of the run's attacks that met the defense, each with its name and parameters, by label."""
    rows = _rows(steps)
    met = set(rows["attack"])
    entries = steps.results.run.get("matrix", {}).get("attacks", [])
    return {one["label"]: {"name": one["name"], **one.get("parameters", {})} for one in entries if one["label"] in met}


def _rows(steps: Steps) -> pd.DataFrame:
    """Return the records of the defense on the data set."""
    rows = steps.results.records
    return rows[(rows["dataset"] == steps.dataset) & (rows["defense"] == steps.defense)]


def _repeated(steps: Steps, attacks: Sequence[JsonObject]) -> str:
    """Return the command that runs again, for a program's own images by these attacks."""
    if steps.is_of_command_line or steps.data or not attacks:
        return steps.further()
    return steps.same(attack=[one["name"] if len(one) == 1 else one for one in attacks])


def _suited(steps: Steps) -> tuple[str, str]:
    """Return advice where every attack was skipped, and the command without the parameters that the reasons name."""
    reasons = _rows(steps).groupby("attack")["reason"].first()
    attacks: list[JsonObject] = []
    named: dict[str, None] = {}
    for label, table in _attacks(steps).items():
        causes = dict.fromkeys(key for key in table if key != "name" and re.search(rf"\b{key}\b", reasons[label]))
        attacks += [{key: value for key, value in table.items() if key not in causes}] if causes else []
        named |= causes
    cure = f"leave out {', '.join(named)}, and run again" if named else "run attacks that suit the defense"
    return f"Every attack was skipped for the reasons above, so nothing is known: {cure}:", _repeated(steps, attacks)


def _masked(steps: Steps, finding: JsonObject, worst: Sequence[Row]) -> str:
    """Return a sentence where attacks by gradients could not work, without its full stop; "" where they could."""
    shares = (row.get(name, 0.0) for row in worst if effort_note(row) for name in ("blind", "masked"))
    if (blind := max(shares, default=0.0)) > LIMIT:
        return f"The gradient is zero or not finite on {percent(blind)} % of the attacked inputs"
    if misled(finding) and not _asks_alone(steps):
        return "Gradients mislead the attacks of this run"
    return ""


def _asks_alone(steps: Steps) -> bool:
    """Return whether an attack of the run used queries alone."""
    ran = set(_rows(steps).loc[lambda rows: rows["status"] == "ok", "key"])
    return any(entry.knowledge in ("score", "decision") for key, entry in steps.results.index.items() if key in ran)


def _unmasked(steps: Steps, cause: str) -> tuple[str, str]:
    """Return what to do about gradients that do not help an attack, and a command with an attack that needs none.

    cause: result of `_masked`.
    """
    norm = steps.sizes[0] if steps.sizes else ""
    added = FROM_SCORES.get(norm)
    if steps.matrix != STRONG and steps.can_be_strong:
        return f"{cause}: {WRAPPED}, and run `{STRONG}`, some of whose attacks need no gradient:", steps.strong()
    if added is None or _asks_alone(steps):
        return f"{cause}: {WRAPPED}, and run again:", _repeated(steps, _ran(steps))
    again = (
        steps.same(attack=[added]) if steps.is_of_command_line else _repeated(steps, [*_ran(steps), {"name": added}])
    )
    return f"{cause}: {cure_of_zero_gradients(norm)}:", again


def _ran(steps: Steps) -> list[JsonObject]:
    """Return the tables of the attacks that were not skipped."""
    rows = _rows(steps)
    ran = set(rows.loc[rows["status"] != "skipped", "attack"])
    return [table for label, table in _attacks(steps).items() if label in ran]


def misled(finding: JsonObject) -> list[str]:
    """Return a sentence where query-based attacks beat significantly more than those with gradients; else nothing."""
    return [
        "Gradients mislead here: query-based attacks, which use none, beat significantly more inputs than all "
        f"gradient-based attacks together ({check['evidence']})."
        for check in finding["checks"]
        if check["check"] == "query" and check["result"] in ("warn", "fail")
    ]
