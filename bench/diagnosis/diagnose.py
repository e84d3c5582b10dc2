"""Computes the gradient-masking diagnosis of a run: the content of diagnosis.json."""

from __future__ import annotations

import pandas as pd

from manifold_bench.bench.diagnosis.checks import CHECKS, overall
from manifold_bench.bench.diagnosis.evidence import ITERATIVE, NOISE, QUERY, SINGLE_STEP, TRANSFER, Evidence
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import IMAGE_COLUMNS, PROBE
from manifold_bench.defenses.identity import JsonObject

Diagnosis = JsonObject
"""{"defenses": [{dataset, defense, result, checks: [{check, title, result, evidence, meaning}]}]}"""


def diagnose(results: Results) -> Diagnosis:
    """Return the diagnosis of every defense of a run, from its records, probes and inspections."""
    identities = results.identities
    roles = {key: _role(identity, results.index[key].knowledge) for key, identity in identities.items()}
    ladders = {key: bool(identity["ladder"]) for key, identity in identities.items()}
    records = pd.concat([results.records, results.probes]) if len(results.probes) else results.records
    records = records.drop(columns=list(IMAGE_COLUMNS), errors="ignore")
    records = records.assign(role=records["key"].map(roles), ladder=records["key"].map(ladders))
    inspections: dict[tuple[str, str], JsonObject] = {}
    for one in results.inspections:
        name = one["measurement"].removeprefix(PROBE)
        inspections.setdefault((one["dataset"], one["defense"]), {})[name] = one
    defenses = []
    for (dataset, defense), rows in records.groupby(["dataset", "defense"], sort=False):
        evidence = Evidence(
            records=rows,
            undefended=_undefended(results, str(dataset), str(defense)),
            inspections=inspections.get((str(dataset), str(defense)), {}),
            num_classes=identities[rows["key"].iloc[0]]["num_classes"],
        )
        checks = [
            {"check": name, "title": check.title, **check.finding(evidence)._asdict(), "meaning": check.meaning}
            for name, check in CHECKS.items()
        ]
        result = overall({one["check"]: one["result"] for one in checks})
        defenses.append({"dataset": str(dataset), "defense": str(defense), "result": result, "checks": checks})
    return {"defenses": defenses}


def _role(identity: JsonObject, knowledge: str | None) -> str:
    """Return the role of an attack in the checks, one of the roles in `diagnosis.evidence`, or "" for none."""
    name = identity["attack"]["name"]
    if name == "noise":
        return NOISE
    if knowledge == "white-box":
        return SINGLE_STEP if name == "fgsm" else ITERATIVE
    return {"oblivious": TRANSFER, "score": QUERY, "decision": QUERY}.get(knowledge or "", "")


def _undefended(results: Results, dataset: str, defense: str) -> pd.DataFrame | None:
    """Return the rows of the transfer probe on the undefended model, on which the probe of a defense was made.

    Returns None where the run has no such rows.
    """
    probes = results.probes
    probed = probes[(probes["dataset"] == dataset) & (probes["attack"] == f"{PROBE}transfer")]
    keys = {str(name): str(rows["key"].iloc[0]) for name, rows in probed.groupby("defense")}
    source = results.identities[keys[defense]].get("source") if defense in keys else None
    for name, key in keys.items():
        if name != defense and results.identities[key]["defense"] == source:
            rows = probed[(probed["defense"] == name) & (probed["status"] == "ok")]
            return rows if len(rows) else None
    return None
