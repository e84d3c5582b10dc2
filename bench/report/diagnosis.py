"""Shows the gradient-masking diagnosis: as tables, as lines on the screen, and as marks on defenses."""

from __future__ import annotations

from collections.abc import Iterator

from manifold_bench.bench.diagnosis.diagnose import Diagnosis
from manifold_bench.bench.report.table import Table
from manifold_bench.bench.text import NOT_RUN
from manifold_bench.defenses.identity import JsonObject

LEGEND = (
    f"Each check gives pass, warn or FAIL, or {NOT_RUN} where it could not run. A check fails only on significant "
    "evidence (p < 0.01). A diagnosis is incomplete where no check failed or warned, but not more than half of them "
    "ran; --diagnose runs them all. docs/diagnosis.md explains each check."
)

EVIDENCE_LEGEND = "Numbers of inputs, with 95 % Wilson intervals in percent; p: exact one-sided McNemar."


def flags(diagnosis: Diagnosis) -> dict[tuple[str, str], str]:
    """Return (data set, defense) → titles of the checks it fails, joined by semicolons; others are left out."""
    return {
        (entry["dataset"], entry["defense"]): "; ".join(c["title"] for c in failed)
        for entry in diagnosis["defenses"]
        if (failed := [c for c in entry["checks"] if c["result"] == "fail"])
    }


def overall_text(entry: JsonObject) -> str:
    """Return the result of a defense's diagnosis as a word; "incomplete" where some of its checks ran, but too few.

    entry: the part of a diagnosis on that defense.
    """
    ran = any(check["result"] != "not run" for check in entry["checks"])
    return "incomplete" if entry["result"] == "not run" and ran else str(entry["result"])


def diagnosis_tables(diagnosis: Diagnosis) -> list[Table]:
    """Return two tables for each data set: the result of every check on every defense, and the evidence."""
    made = []
    for dataset in dict.fromkeys(entry["dataset"] for entry in diagnosis["defenses"]):
        entries = [entry for entry in diagnosis["defenses"] if entry["dataset"] == dataset]
        header = ["check", *(entry["defense"] for entry in entries)]
        rows = [["overall", *(_shown(overall_text(entry)) for entry in entries)]]
        results = [{check["title"]: check["result"] for check in entry["checks"]} for entry in entries]
        for title in dict.fromkeys(title for of_defense in results for title in of_defense):
            rows.append([title, *(_shown(of_defense.get(title, "not run")) for of_defense in results)])
        made.append(Table((dataset, "diagnosis", "results"), f"{dataset}: diagnosis", header, rows, [], LEGEND))
        rows = [
            [entry["defense"], check["title"], _shown(check["result"]), check["evidence"]]
            for entry in entries
            for check in entry["checks"]
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
                yield f"  {_shown(check['result'])} {check['title']}: {check['evidence']}"
