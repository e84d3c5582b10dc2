"""The diagnosis of a run, from what is stored in its folder: data for diagnosis.json, marks and tables of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from manifold_bench.bench.diagnosis.checks import (
    CHECKS,
    ITERATIVE,
    NOISE,
    QUERY,
    SINGLE_STEP,
    TRANSFER,
    Evidence,
    overall,
)
from manifold_bench.bench.records.files import atomic_write
from manifold_bench.bench.records.measurements import load
from manifold_bench.bench.records.schema import PROBE
from manifold_bench.bench.records.store import Store

FILE = "diagnosis.json"


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
    """What an attack is to the checks: see `diagnosis.checks`."""
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
