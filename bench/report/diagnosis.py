"""The masking diagnosis as tables, as lines on the screen, and as marks on defenses."""

from __future__ import annotations

from collections.abc import Iterator

from manifold_bench.bench.diagnosis.diagnose import Diagnosis
from manifold_bench.bench.report.table import Table
from manifold_bench.bench.text import NOT_RUN

LEGEND = (
    f"pass, warn, FAIL, or {NOT_RUN} where a check could not run. A check fails where the evidence is significant "
    "(p < 0.01), so that a fail is no chance. Meaning of each: docs/diagnosis.md."
)


EVIDENCE_LEGEND = "Numbers of inputs, with 95 % Wilson intervals in percent; p: exact one-sided McNemar."


def flags(diagnosis: Diagnosis) -> dict[tuple[str, str], str]:
    """(data set, defense) → the checks that it fails, of those that fail any."""
    return {
        (entry["dataset"], entry["defense"]): "; ".join(c["title"] for c in failed)
        for entry in diagnosis["defenses"]
        if (failed := [c for c in entry["checks"] if c["result"] == "fail"])
    }


def diagnosis_tables(diagnosis: Diagnosis) -> list[Table]:
    """Two tables for each data set: the result of every check on every defense, and the evidence."""
    made = []
    for dataset in dict.fromkeys(entry["dataset"] for entry in diagnosis["defenses"]):
        entries = [entry for entry in diagnosis["defenses"] if entry["dataset"] == dataset]
        header = ["check", *(entry["defense"] for entry in entries)]
        rows = [["overall", *(_shown(entry["result"]) for entry in entries)]]
        results = [{check["title"]: check["result"] for check in entry["checks"]} for entry in entries]
        for title in dict.fromkeys(title for told in results for title in told):
            rows.append([title, *(_shown(told.get(title, "not run")) for told in results)])
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
    """A line for each defense, and one for each of its checks that fails or warns."""
    for entry in diagnosis["defenses"]:
        results = [check["result"] for check in entry["checks"]]
        counts = ", ".join(f"{results.count(v)} {v}" for v in ("pass", "warn", "fail", "not run"))
        yield f"diagnosis {entry['dataset']} / {entry['defense']}: {_shown(entry['result'])} ({counts})"
        for check in entry["checks"]:
            if check["result"] in ("fail", "warn"):
                yield f"  {_shown(check['result'])} {check['title']}: {check['evidence']}"
