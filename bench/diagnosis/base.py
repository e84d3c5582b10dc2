"""The diagnosis of a run, from what is stored in its folder: data for diagnosis.json, marks and tables of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.diagnosis.checks import (
    CHECKS,
    ITERATIVE,
    NOISE,
    QUERY,
    SINGLE_STEP,
    TRANSFER,
    Evidence,
    overall,
)
from bench.measurements.job import load
from bench.records import PROBE
from bench.store import Store, atomic_write
from bench.tables import NOT_RUN, Table

if TYPE_CHECKING:
    from rich.console import Console

FILE = "diagnosis.json"

LEGEND = (
    f"pass, warn, FAIL, or {NOT_RUN} where a check could not run. A check fails where the evidence is significant "
    "(p < 0.01), so that a fail is no chance. Meaning of each: docs/diagnosis.md."
)

EVIDENCE_LEGEND = "Numbers of inputs, with 95 % Wilson intervals in percent; p: exact one-sided McNemar."

Diagnosis = dict[str, Any]
"""{"defenses": [{dataset, defense, verdict, checks: [{check, title, verdict, evidence, meaning}]}]}"""


def diagnose(folder: Path) -> Diagnosis:
    """The diagnosis of every defense of a run; raises InputError as the store does."""
    store = Store(folder)
    records, identities = store.load(probes=True)
    knowledge = store.knowledge()
    roles = {key: _role(identity, knowledge.get(key)) for key, identity in identities.items()}
    ladders = {key: bool(identity["ladder"]) for key, identity in identities.items()}
    records = records.assign(role=records["key"].map(roles), ladder=records["key"].map(ladders))
    inspections: dict[tuple[str, str], dict[str, Any]] = {}
    for result in load(folder, probes=True):
        name = result["measurement"].removeprefix(PROBE)
        inspections.setdefault((result["dataset"], result["defense"]), {})[name] = result
    defenses = []
    for (dataset, defense), rows in records.groupby(["dataset", "defense"], sort=False):
        evidence = Evidence(
            records=rows,
            undefended=_undefended(records, identities, str(dataset), str(defense)),
            inspections=inspections.get((str(dataset), str(defense)), {}),
            num_classes=identities[rows["key"].iloc[0]]["num_classes"],
        )
        checks = [
            {"check": name, "title": rule.title, **rule.find(evidence)._asdict(), "meaning": rule.meaning}
            for name, rule in CHECKS.items()
        ]
        verdict = overall(check["verdict"] for check in checks)
        defenses.append({"dataset": str(dataset), "defense": str(defense), "verdict": verdict, "checks": checks})
    return {"defenses": defenses}


def _role(identity: Mapping[str, Any], knowledge: str | None) -> str:
    """What an attack is to the checks: see `bench.diagnosis.checks`."""
    name = identity["attack"]["name"]
    if name == "noise":
        return NOISE
    if knowledge == "white-box":
        return SINGLE_STEP if name == "fgsm" else ITERATIVE
    return {"oblivious": TRANSFER, "score": QUERY, "decision": QUERY}.get(knowledge or "", "")


def _undefended(
    records: pd.DataFrame, identities: Mapping[str, Mapping[str, Any]], dataset: str, defense: str
) -> pd.DataFrame | None:
    """Rows of the transfer probe on the very model that the probe on that defense was made on."""
    probed = records[(records["dataset"] == dataset) & (records["attack"] == f"{PROBE}transfer")]
    keys = {str(name): str(rows["key"].iloc[0]) for name, rows in probed.groupby("defense")}
    source = identities[keys[defense]].get("source") if defense in keys else None
    for name, key in keys.items():
        if name != defense and identities[key]["defense"] == source:
            rows = probed[(probed["defense"] == name) & (probed["status"] == "ok")]
            return rows if len(rows) else None
    return None


def write_diagnosis(folder: Path) -> Diagnosis:
    """Diagnoses a run and writes diagnosis.json."""
    found = diagnose(folder)
    atomic_write(folder / FILE, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


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
