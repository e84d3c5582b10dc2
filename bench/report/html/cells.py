"""Cells of the matrix as report.html shows them: heat maps, and the details of every cell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.metrics.shares import percent_interval
from manifold_bench.bench.records.schema import CLEAN, IMAGE_COLUMNS, WORST_CASE, Row
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.html.images import Image, Images
from manifold_bench.bench.report.html.reproduce import command
from manifold_bench.bench.report.html.systems import About, known_systems
from manifold_bench.bench.report.order import by_norm
from manifold_bench.bench.report.pictures import (
    answer_text,
    difference,
    levels,
    pictured,
    pixels,
    shown_inputs,
    size_text,
    truth_text,
)
from manifold_bench.bench.report.style import shade
from manifold_bench.bench.report.tables import Marks, Panel, matrix_columns, rows_by
from manifold_bench.bench.text import NOT_RUN, distance_text, eps_text, percent
from manifold_bench.defenses.identity import JsonObject

IMAGE_BUDGET = 2_000_000
"""Number of characters that the images of a page may take."""

CELL = ["dataset", "defense", "attack", "norm"]

SHOWN_INPUTS = (4, 2, 1)
"""Numbers of inputs that are shown of each cell: the first of these numbers that keeps the page within its budget."""


@dataclass(frozen=True)
class Strength:
    """One ε of a cell.

    shares: shares of inputs that are accepted and right, rejected, and accepted and wrong, in [0, 1]; None where the
    cell has no figures. figures: head of a column → its text.
    """

    eps: str
    shares: tuple[float, float, float] | None
    figures: dict[str, str]


@dataclass(frozen=True)
class Input:
    """One attacked input: its images with their captions, the defense's answer, and whether the attack succeeded."""

    images: list[tuple[str, Image | None]]
    answer: str
    success: bool


@dataclass(frozen=True)
class CellDetails:
    """The details of one defense under one attack in one norm; the attack may also be "clean" or "worst-case".

    command: shell command that computes the cell again; None where it is not known.
    """

    id: str
    dataset: str
    defense: str
    attack: str
    norm: str
    strengths: list[Strength]
    notes: list[str]
    command: str | None
    facts: list[tuple[str, str]]
    """Names and values of what identifies the cell: parameters of the attack, weights, protocol, seed, key."""
    about: list[About] = field(default_factory=list)
    """What the defense and the attack are, where this project registers them."""
    inputs: list[Input] = field(default_factory=list)
    pictured_at: str = ""
    """The ε at which the inputs are shown, as text."""


@dataclass(frozen=True)
class Field:
    """A field of a heat map.

    cell: id of the cell whose details it opens. background, ink: colours as #rrggbb; None where there is no figure.
    """

    text: str
    cell: str | None
    background: str | None = None
    ink: str | None = None


@dataclass(frozen=True)
class HeatMap:
    """A heat map of one data set and norm.

    figure: name of what is shown. columns: name of each attack and its ε, as text; the worst case comes first, where a
    phone shows it. rows: name of each defense, whether the user named it, and its fields, one for each column. notes:
    reasons of the numbered marks.
    """

    title: str
    figure: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, bool, list[Field]]]
    notes: list[str]


class Cells:
    """The details of every cell of a run by (data set, defense, attack, norm); a clean cell has norm "none"."""

    def __init__(self, report: Report, budget: int = IMAGE_BUDGET) -> None:
        """budget: number of characters that all images may take; where they take more, fewer inputs are shown."""
        results, summary = report.results, report.summary
        self.identities, self.doubts, self.own = results.identities, report.doubts, report.own
        self.systems = known_systems(results.identities)
        met = summary[summary["kind"] != CLEAN]
        self.attacked = set(zip(met["dataset"], met["defense"], strict=True))
        jobs = results.records[[*CELL, "key"]].drop_duplicates()
        self.keys = {key: list(rows) for key, rows in jobs.groupby(CELL, sort=False)["key"]}
        pictures: dict[object, pd.DataFrame] = dict(iter(pictured(results.records).groupby(CELL, sort=False)))
        for shown in SHOWN_INPUTS:
            self.images = Images()
            inputs = {key: list(map(self._input, shown_inputs(rows, shown))) for key, rows in pictures.items()}
            if self.images.size <= budget:
                break
        self.all: dict[tuple[str, str, str, str], CellDetails] = {}
        for (dataset, defense, norm), same in by_norm(summary, "dataset", "defense"):
            of_attack: dict[str, list[Row]] = {}
            for row in same.to_dict("records"):
                of_attack.setdefault(row["attack"], []).append(row)
            attacks, whole = [name for name in of_attack if name != WORST_CASE], Marks(same, report.doubts)
            for attack, rows in of_attack.items():
                key = (dataset, defense, attack, norm)
                strength = "" if key not in pictures or norm == FOOLING else eps_text(pictures[key]["eps"].iloc[0])
                marks = whole.without_notes()
                self.all[key] = CellDetails(
                    f"c{len(self.all) + 1}",
                    *key,
                    strengths=[_strength(row, marks) for row in rows],
                    notes=marks.notes,
                    command=command(results.run, *key[:2], attacks if attack == WORST_CASE else [key[2]], key[3]),
                    facts=self._facts(key),
                    about=self._about(key),
                    inputs=inputs.get(key, []),
                    pictured_at=strength,
                )

    def find(self, dataset: str, defense: str, attack: str, norm: str) -> CellDetails | None:
        """Return a cell, None where the run has no such cell; the clean cell is found under any norm."""
        return self.all.get((dataset, defense, attack, "none" if attack == CLEAN else norm))

    def _facts(self, key: tuple[str, str, str, str]) -> list[tuple[str, str]]:
        if key not in self.keys:
            return []  # a worst case is computed from several jobs, so it has no key of its own
        identity = self.identities[self.keys[key][0]]
        attack, defense = identity["attack"], identity["defense"]
        facts = [] if key[2] == CLEAN else [("attack", _system(attack))]
        facts.append(("defense", _system(defense)))
        facts += [("weights, sha256", str(defense["weights_sha256"]))] if defense["weights_sha256"] else []
        seeds = [str(self.identities[job]["seed"]) for job in self.keys[key]]
        facts += [("protocol", str(identity["protocol"])), ("seed", ", ".join(seeds))]
        return [*facts, ("key", ", ".join(self.keys[key]))]

    def _about(self, key: tuple[str, str, str, str]) -> list[About]:
        identity = self.identities[self.keys[key][0]] if key in self.keys else {}
        names = ((kind, part["name"]) for kind, part in identity.items() if kind in ("defense", "attack"))
        return [self.systems[name] for name in names if name in self.systems]

    def _input(self, record: Row) -> Input:
        shape = self.identities[record["key"]]["shape"]
        original, adversarial, seen = (pixels(record[column], shape) for column in IMAGE_COLUMNS)
        truth, answer = truth_text(record), answer_text(record)
        assert original is not None and adversarial is not None
        change, largest = difference(original, adversarial)
        size = size_text(largest).replace("× ", "×\u00a0")  # a caption breaks after the comma
        about = f"input {record['sample']}, {truth}"
        images = [
            (truth, self.images.add(levels(original), f"original {about}")),
            ("attacked", self.images.add(levels(adversarial), f"attacked {about}: {answer}")),
            (size, self.images.add(change, f"what the attack changed in {about}: {size}")),
            ("seen", None if seen is None else self.images.add(levels(seen), f"what the defense sees of {about}")),
        ]
        return Input(images, answer, bool(record["success"]))


def _system(identity: JsonObject) -> str:
    """Return a system's name, the parameters that differ from their defaults, and its version."""
    parameters = json.dumps(identity["parameters"], ensure_ascii=False).replace('"', "")[1:-1] or "default parameters"
    return f"{identity['name']}: {parameters}; version {identity['version']}"


def _strength(row: Row, marks: Marks) -> Strength:
    """Return the figures of one summary row as texts."""
    is_noise, attacked = row["norm"] == FOOLING, row["kind"] != CLEAN
    figures = {"n": f"{row['n']:,}"}
    if is_noise:
        figures |= {"rejected": percent_interval(row["rejection"], row["n"]), "accepted": marks.cell(row, "error")}
    else:
        names = {"accepted and right": "accuracy", "rejected": "rejection", "accepted and wrong": "error"}
        # of attacked cells the figure with an interval is robust accuracy
        figures |= {head: percent(row[name]) if attacked else marks.cell(row, name) for head, name in names.items()}
    if attacked and not is_noise:
        figures |= {"robust": marks.cell(row, "robust_accuracy")}
        figures |= {"strict": marks.cell(row, "strict_robust_accuracy")}
        figures |= {"median distance": distance_text(row["median_distance"])}
    if attacked:
        figures |= {"valid outputs": percent(row["valid"])}
    for direction in ("forward", "backward"):
        passes = row[f"{direction}s"]
        figures[f"{direction} passes per input"] = f"{passes:,.0f}" if passes >= 10 else f"{passes:.1f}"
    figures["seconds"] = f"{row['seconds']:,.1f}"
    eps = eps_text(row["eps"]) if attacked and np.isfinite(row["eps"]) else NOT_RUN
    if row["status"] in ("failed", "skipped"):
        why = {"n": figures["n"], list(figures)[1]: marks.cell(row, "error")}
        return Strength(eps, None, dict.fromkeys(figures, NOT_RUN) | why)
    return Strength(eps, (0.0 if is_noise else row["accuracy"], row["rejection"], row["error"]), figures)


def heat_map(panel: Panel, cells: Cells, flags: Mapping[tuple[str, str], str] = {}) -> HeatMap:
    """Return the heat map of a panel: robust accuracy, or for noise images the share that is accepted.

    flags: (data set, defense) → what the checks of the diagnosis that it fails have found.
    """
    own = {defense: reason for (there, defense), reason in flags.items() if there == panel.dataset}
    marks = Marks(panel.attacked, cells.doubts, own)
    *columns, worst = matrix_columns(panel)
    columns = [worst, *columns]
    at = rows_by(pd.concat([panel.clean, panel.attacked]), "defense", "attack", "eps")
    rows = []
    attacked = set(panel.attacked["defense"])
    for defense in panel.defenses:
        if defense not in attacked and (panel.dataset, defense) in cells.attacked:
            continue  # another norm shows it
        fields = [
            _field(at.get((defense, attack, eps)), panel, marks, cells.find(panel.dataset, defense, attack, panel.norm))
            for attack, eps in columns
        ]
        rows.append((marks.defense(defense), defense in cells.own, fields))
    figure = "noise images accepted" if panel.is_noise else "robust accuracy"
    heads = [(attack, "" if attack == CLEAN or np.isinf(eps) else f"ε = {eps_text(eps)}") for attack, eps in columns]
    return HeatMap(panel.title, figure, heads, rows, marks.notes)


def _field(row: Row | None, panel: Panel, marks: Marks, cell: CellDetails | None) -> Field:
    figure = "error" if panel.is_noise else "robust_accuracy"
    text = marks.cell(row, figure, lambda share, _: percent(share))
    if row is None or cell is None or np.isnan(row[figure]):
        return Field(text, cell.id if cell else None)
    # noise that is rejected gets the colour of robust inputs
    background, ink = shade(1 - row[figure] if panel.is_noise else row[figure])
    return Field(text, cell.id, background, ink)
