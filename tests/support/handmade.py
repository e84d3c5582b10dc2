"""Records made by hand, small enough that every figure of them can be checked on paper."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from manifold_bench.bench.records.results import JobFacts, Results
from manifold_bench.bench.records.schema import (
    ATTACK,
    CALIBRATION,
    CLEAN,
    IMAGE_COLUMNS,
    PROBE,
    PROBED,
    REVISION,
    typed,
)
from manifold_bench.bench.records.store import Entry, Store
from manifold_bench.defenses.identity import key_of

RUN: dict[str, Any] = {
    "code": "abc",
    "python": "3.11",
    "packages": {},
    "finished": True,
    "wall_seconds": 1,
    "draws": 1,
    "workers": 1,
    "machine": {"system": "", "processor": "", "cores": 1},
    "command": [],
    "started": "2026-01-01",
    "device": "cpu",
    "seeds": [0],
    "kernels": [],
    "matrix": {
        "source": "evil.toml",
        "claims": [],
        "datasets": [{"name": "digits", "n": 10}],
        "defenses": [{"name": "evil:Module", "label": "d"}],
    },
}
"""A whole run.json."""

REJECT = -7
"""An answer in the lists below that means a rejection."""


def cell(
    attack: str = "a",
    eps: Sequence[float] = (0.1,),
    labels: Sequence[int] = (0, 1, 2, 3),
    clean: Sequence[int] | None = None,
    adv: Mapping[float, Sequence[int]] | Sequence[int] | None = None,
    *,
    dataset: str = "digits",
    defense: str = "d",
    norm: str = "linf",
    status: str = "ok",
    reason: str = "",
    invalid: Sequence[int] = (),
    distance: Sequence[float] | None = None,
    samples: Sequence[int] | None = None,
    aims: Sequence[int] | None = None,
    clean_scores: Sequence[float] | None = None,
    adv_scores: Mapping[float, Sequence[float]] | Sequence[float] | None = None,
    passes: tuple[float, float] = (10.0, 5.0),
    images: Mapping[int, tuple[bytes | None, bytes | None, bytes | None]] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Rows of one job, input by input for each ε.

    clean, adv: the defense's answer per input (adv: for all ε, or per ε), REJECT for a rejection; right where not
    given. clean_scores, adv_scores: how suspicious it looked, in the same form; NaN where not given (adv_scores: the
    clean ones). invalid: positions of inputs whose output broke the rules. distance: per input; derived where not
    given. The lists hold an input with several aims once for each aim, with its sample repeated. Noise (norm
    "fooling") has the label −1.
    """
    if attack in (CLEAN, CALIBRATION):
        norm, eps = "none", (0.0,)
    elif norm == "fooling":
        eps = (math.inf,)
    split = "validation" if attack == CALIBRATION else "noise" if norm == "fooling" else "test"
    clean = list(labels if clean is None else clean)
    aims = [-1] * len(labels) if aims is None else aims
    clean_scores = [math.nan] * len(labels) if clean_scores is None else clean_scores
    ladder = per_eps(clean if adv is None else adv, eps)
    scores = per_eps(clean_scores if adv_scores is None else adv_scores, eps)
    samples = range(len(labels)) if samples is None else samples
    ok = status == "ok"
    kind = attack if attack in (CLEAN, CALIBRATION) else PROBED if attack.startswith(PROBE) else ATTACK

    def beats(i: int, answer: int) -> bool:
        as_aimed = norm != "fooling" or aims[i] in (-1, answer)
        return answer not in (REJECT, labels[i]) and as_aimed

    rows: list[dict[str, Any]] = []
    for i, (sample, label) in enumerate(zip(samples, labels, strict=True)):
        beaten = [e for e in eps if beats(i, ladder[e][i]) and i not in invalid]
        found = 0.0 if beats(i, clean[i]) else min(beaten, default=math.inf)
        for e in eps:
            answer = clean[i] if i in invalid else ladder[e][i]
            rows.append(
                {
                    "dataset": dataset,
                    "split": split,
                    "sample": sample,
                    "input_sha256": hashlib.sha256(f"{dataset}-{split}-{sample}".encode()).hexdigest(),
                    "label": label,
                    "kind": kind,
                    "aim": aims[i],
                    "defense": defense,
                    "attack": attack,
                    "norm": norm,
                    "eps": e,
                    "seed": seed,
                    "protocol": "deterministic",
                    "clean_label": (max(label, 0) if clean[i] == REJECT else clean[i]) if ok else 0,
                    "clean_rejected": ok and clean[i] == REJECT,
                    "clean_score": clean_scores[i] if ok else math.nan,
                    "adv_label": (max(label, 0) if answer == REJECT else answer) if ok else 0,
                    "adv_rejected": ok and answer == REJECT,
                    "adv_score": (clean_scores[i] if i in invalid else scores[e][i]) if ok else math.nan,
                    "linf": e if ok else 0.0,
                    "l2": e if ok else 0.0,
                    "l1": e if ok else 0.0,
                    "l0": float(ok and e > 0),
                    "distance": (found if distance is None else distance[i]) if ok else 0.0,
                    "valid": ok and i not in invalid,
                    "success": ok and i not in invalid and beats(i, answer),
                    "forwards": passes[0] if ok else 0.0,
                    "backwards": passes[1] if ok else 0.0,
                    "unreturned": False,
                    "blind": math.nan,
                    "moved": True,
                    "improved": True,
                    "seconds": 0.5,
                    "status": status,
                    "reason": reason,
                    **dict(zip(IMAGE_COLUMNS, (images or {}).get(i, (None, None, None)), strict=True)),
                }
            )
    frame = typed(pd.DataFrame(rows))
    return frame.assign(key=f"{dataset}/{defense}/{attack}/{norm}/{seed}")


def per_eps(values: Mapping[float, Sequence[Any]] | Sequence[Any], eps: Sequence[float]) -> dict[float, list[Any]]:
    """Values per input for each ε, from the same for all or from their own."""
    return {e: list(values[e] if isinstance(values, Mapping) else values) for e in eps}


def run(*cells: pd.DataFrame) -> pd.DataFrame:
    """The records of a run that holds these cells."""
    return pd.concat(cells, ignore_index=True)


def identities(records: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """A made-up identity for every job key in the records, alike wherever the names are."""
    found: dict[str, dict[str, Any]] = {}
    for key, rows in records.groupby("key"):
        first = rows.iloc[0]
        found[str(key)] = {
            "records": REVISION,
            "dataset": {
                "name": first["dataset"],
                "revision": "1",
                "split": first["split"],
                "indices_sha256": "00",
                "n": rows["sample"].nunique(),
            },
            "defense": {
                "label": first["defense"],
                "name": first["defense"],
                "version": "1",
                "parameters": {"width": 32},
                "weights_sha256": "aa",
                "source_sha256": "bb",
            },
            "attack": {"label": first["attack"], "name": "pgd", "version": "1", "parameters": {"steps": 40}},
            "norm": first["norm"],
            "eps": sorted(rows["eps"].unique().tolist()),
            "ladder": True,
            "seed": int(first["seed"]),
            "protocol": "deterministic",
            "shape": [1, 8, 8],
            "num_classes": 10,
        }
    return found


def a_run(
    records: pd.DataFrame,
    ids: dict[str, dict[str, Any]] | None = None,
    *,
    folder: Path = Path("a run"),
    minimal: Collection[str] = (),
    **run_file: Any,
) -> Results:
    """Results of a run, with these identities (identities(records) where not given) and run.json.

    minimal: names of the attacks that look for smallest perturbations.
    """
    known = identities(records) if ids is None else ids
    jobs = {
        key: JobFacts(Entry(f"{key}.parquet", minimal=one["attack"]["label"] in minimal), one)
        for key, one in known.items()
    }
    return Results(folder, records, jobs, run=run_file)


@dataclass
class StoredJob:
    """As much of a job as the store looks at."""

    identity: dict[str, Any]
    names: tuple[str, str, str, str] = ("digits", "d", "a", "linf")
    facts: dict[str, Any] = field(default_factory=dict)
    title: str = "digits / d / a"

    @property
    def key(self) -> str:
        return key_of(self.identity)

    def __post_init__(self) -> None:
        """By default the identity is that of rows of `cell` with these names."""
        dataset, *labels = self.names[:3]
        system = {"version": "1", "parameters": {}}
        defense, attack = ({"label": label, "name": label} | system for label in labels)
        common = {"dataset": {"name": dataset, "split": "test", "n": 4}, "defense": defense, "attack": attack}
        common |= {"norm": "linf", "eps": [0.1], "ladder": True, "seed": 0, "protocol": "deterministic"}
        common |= {"shape": [1, 8, 8], "num_classes": 10}
        self.identity = {"records": REVISION} | common | self.identity


def write_run(folder: Path, records: pd.DataFrame, families: Mapping[str, str] | None = None) -> Path:
    """Stores the records as a run's output folder, a file per job; returns the folder.

    families: of the defenses, for an index; without them there is none.
    """
    known = identities(records)
    jobs = []
    for key, rows in records.groupby("key"):
        identity = known[str(key)]
        defense = identity["defense"]["label"]
        names = (identity["dataset"]["name"], defense, identity["attack"]["label"], identity["norm"])
        facts = {"family": families[defense]} if families and defense in families else {}
        jobs.append(StoredJob(identity, names, facts))
        Store(folder).write(jobs[-1], rows)
    if families:
        Store(folder).write_index(jobs)
    return folder
