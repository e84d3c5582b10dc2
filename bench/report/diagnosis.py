"""Shows the gradient-masking diagnosis: as tables, as lines on the screen, and as marks on defenses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from manifold_bench.bench.diagnosis.diagnose import Diagnosis
from manifold_bench.bench.diagnosis.evidence import FIRST
from manifold_bench.bench.report.table import Table
from manifold_bench.bench.text import NOT_RUN
from manifold_bench.defenses.identity import JsonObject

LEGEND = (
    f"Each check gives pass, warn or FAIL, or {NOT_RUN} where it could not run. A check fails only on significant "
    "evidence (p < 0.01). A diagnosis is incomplete where no check failed or warned, but not more than half of them "
    "ran; --diagnose runs them all. docs/diagnosis.md explains each check."
)

EVIDENCE_LEGEND = "Numbers of inputs, with 95 % Wilson intervals in percent; p: exact one-sided McNemar."

FINDINGS = {
    "iterative": "a single step beats inputs that iterative attacks miss",
    "monotone": "success falls as ε grows",
    "half": "ε = 0.5 in L∞ leaves accuracy above chance",
    "unbounded": "an unbounded attack misses inputs",
    "order": "noise or transferred images beat inputs that white-box attacks miss",
    "query": "query-based attacks beat inputs that white-box attacks miss",
    "gradients": "gradients are zero or not finite on more than 1 % of inputs",
    "more": "more steps or restarts gain at least 1 pp",
    "moving": "the loss still changes in the last tenth of the steps",
    "repeats": "answers depend on more than the image (the batch, or earlier calls)",
    "planted": "attacks miss more than 5 % of planted adversarial examples",
    "undefended": "it is less robust than the undefended model under transfer",
    "accepts": "many clean inputs are rejected",
    "reached": "attacks find hardly any image that the defense accepts",
    "noise": "harmless noise (half a grey level) is rejected",
    "grid": "rounding an attack's output to the data's grid gains successes",
}
"""Name of a check → what has been found where it fails or warns; its title says what should hold instead."""


def found_text(check: JsonObject) -> str:
    """Return what a check has found where it fails or warns. check: its part of a diagnosis."""
    if check["check"] == "repeats" and FIRST in check["evidence"]:  # a remark of the clean pass, which names the cause
        return str(check["evidence"].removeprefix(FIRST))
    return FINDINGS.get(check["check"], f"this does not hold: {check['title']}")


def flags(diagnosis: Diagnosis) -> dict[tuple[str, str], str]:
    """Return (data set, defense) → what the checks that it fails have found; others are left out."""
    return {
        (entry["dataset"], entry["defense"]): "; ".join(map(found_text, failed))
        for entry in diagnosis["defenses"]
        if (failed := [c for c in entry["checks"] if c["result"] == "fail"])
    }


def overall_text(entry: JsonObject) -> str:
    """Return the result of a defense's diagnosis as a word; "incomplete" where some of its checks ran, but too few.

    entry: the part of a diagnosis on that defense.
    """
    ran = any(check["result"] != "not run" for check in entry["checks"])
    return "incomplete" if entry["result"] == "not run" and ran else str(entry["result"])


def by_dataset(diagnosis: Diagnosis) -> dict[str, list[JsonObject]]:
    """Return data set → the parts of a diagnosis on its defenses."""
    found: dict[str, list[JsonObject]] = {}
    for entry in diagnosis["defenses"]:
        found.setdefault(entry["dataset"], []).append(entry)
    return found


def ran_titles(entries: Sequence[JsonObject]) -> list[str]:
    """Return the titles of the checks that ran on any of these defenses, each once."""
    titles = (check["title"] for entry in entries for check in entry["checks"] if check["result"] != "not run")
    return list(dict.fromkeys(titles))


def not_run_lines(entries: Sequence[JsonObject]) -> list[str]:
    """Return sentences on the checks that could not run, each reason once, with the defenses that it holds for."""
    of_check: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        for check in entry["checks"]:
            if check["result"] == "not run":
                of_check.setdefault((check["title"], check["evidence"]), []).append(entry["defense"])
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (title, reason), defenses in of_check.items():
        together.setdefault((reason, tuple(defenses)), []).append(title)
    return [
        f"Not run{_on(defenses, entries)}{f' ({reason})' if reason else ''}: {'; '.join(titles)}."
        for (reason, defenses), titles in together.items()
    ]


def _on(defenses: Sequence[str], entries: Sequence[JsonObject]) -> str:
    return "" if len(defenses) == len(entries) else f" on {', '.join(defenses)}"


def diagnosis_tables(diagnosis: Diagnosis) -> list[Table]:
    """Return two tables for each data set: the result of every check that ran, and the evidence.

    A data set on which no check ran has none; the legend names the checks that did not.
    """
    made = []
    for dataset, entries in by_dataset(diagnosis).items():
        if not (titles := ran_titles(entries)):
            continue
        header = ["check", *(entry["defense"] for entry in entries)]
        rows = [["overall", *(_shown(overall_text(entry)) for entry in entries)]]
        results = [{check["title"]: check["result"] for check in entry["checks"]} for entry in entries]
        for title in titles:
            rows.append([title, *(_shown(of_defense.get(title, "not run")) for of_defense in results)])
        legend = " ".join([LEGEND, *not_run_lines(entries)])
        made.append(Table((dataset, "diagnosis", "results"), f"{dataset}: diagnosis", header, rows, [], legend))
        rows = [
            [entry["defense"], check["title"], _shown(check["result"]), check["evidence"]]
            for entry in entries
            for check in entry["checks"]
            if check["result"] != "not run"
        ]
        title, header = f"{dataset}: diagnosis, evidence", ["defense", "check", "result", "evidence"]
        made.append(Table((dataset, "diagnosis", "evidence"), title, header, rows, [], EVIDENCE_LEGEND))
    return made


def _shown(result: str) -> str:
    return {"fail": "FAIL", "not run": NOT_RUN}.get(result, result)


def diagnosis_lines(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield a line for each defense, and one for each of its checks that fails or warns."""
    for entry in diagnosis["defenses"]:
        results = [check["result"] for check in entry["checks"]]
        counts = ", ".join(f"{results.count(v)} {v}" for v in ("pass", "warn", "fail", "not run"))
        yield f"diagnosis {entry['dataset']} / {entry['defense']}: {_shown(overall_text(entry))} ({counts})"
        for check in entry["checks"]:
            if check["result"] in ("fail", "warn"):
                yield f"  {_shown(check['result'])}: {found_text(check)} ({check['evidence']})"
