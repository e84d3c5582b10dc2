"""The masking diagnosis as tables, as lines on the screen, and as marks on defenses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from manifold_bench.bench.diagnosis.diagnose import Diagnosis
from manifold_bench.bench.report.table import Table
from manifold_bench.bench.text import NOT_RUN

if TYPE_CHECKING:
    from rich.console import Console


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
        if (failed := [c for c in entry["checks"] if c["verdict"] == "fail"])
    }


def diagnosis_tables(diagnosis: Diagnosis) -> list[Table]:
    """Two tables for each data set: the verdict of every check on every defense, and the evidence."""
    made = []
    for dataset in dict.fromkeys(entry["dataset"] for entry in diagnosis["defenses"]):
        entries = [entry for entry in diagnosis["defenses"] if entry["dataset"] == dataset]
        header = ["check", *(entry["defense"] for entry in entries)]
        rows = [["overall", *(_shown(entry["verdict"]) for entry in entries)]]
        verdicts = [{check["title"]: check["verdict"] for check in entry["checks"]} for entry in entries]
        for title in dict.fromkeys(title for told in verdicts for title in told):
            rows.append([title, *(_shown(told.get(title, "not run")) for told in verdicts)])
        made.append(Table((dataset, "diagnosis", "verdicts"), f"{dataset}: diagnosis", header, rows, [], LEGEND))
        rows = [
            [entry["defense"], check["title"], _shown(check["verdict"]), check["evidence"]]
            for entry in entries
            for check in entry["checks"]
        ]
        title, header = f"{dataset}: diagnosis, evidence", ["defense", "check", "verdict", "evidence"]
        made.append(Table((dataset, "diagnosis", "evidence"), title, header, rows, [], EVIDENCE_LEGEND))
    return made


def _shown(verdict: str) -> str:
    return {"fail": "FAIL", "not run": NOT_RUN}.get(verdict, verdict)


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """One line for each defense, and one for each of its checks that fails or warns."""
    from rich.text import Text

    for line in _lines(diagnosis):
        console.print(Text(line))


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    for entry in diagnosis["defenses"]:
        verdicts = [check["verdict"] for check in entry["checks"]]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("pass", "warn", "fail", "not run"))
        yield f"diagnosis {entry['dataset']} / {entry['defense']}: {_shown(entry['verdict'])} ({counts})"
        for check in entry["checks"]:
            if check["verdict"] in ("fail", "warn"):
                yield f"  {_shown(check['verdict'])} {check['title']}: {check['evidence']}"
