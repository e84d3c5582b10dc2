"""report.html: everything a run shows, in one file that asks no network and computes no figure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from manifold_bench.bench.errors import InputError, one_line
from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.metrics.selective import implausible
from manifold_bench.bench.planning import registry
from manifold_bench.bench.records.provenance import kernels_text
from manifold_bench.bench.records.schema import WORST_CASE
from manifold_bench.bench.records.store import file_name
from manifold_bench.bench.report.diagnosis import flags
from manifold_bench.bench.report.html.cells import Cell, Cells, heat_map
from manifold_bench.bench.report.plots import shade
from manifold_bench.bench.report.table import Table
from manifold_bench.bench.report.tables import Marks, find, panels, robust_legend
from manifold_bench.bench.text import NOT_RUN, distance_text, eps_text, norm_text, percent

SYMBOLS = {"pass": "✓", "warn": "!", "fail": "✗", "not run": NOT_RUN}
"""Of the diagnosis' verdicts; the word always stands beside."""


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard at one ε. figures: text and value to sort by, None where there is none."""

    dataset: str
    norm: str
    norm_name: str
    family: str
    eps: str
    largest: bool
    defense: str
    figures: list[tuple[str, float | None]]
    strongest: str
    diagnosis: str


@dataclass(frozen=True)
class Leaderboard:
    """header: of the figures. strengths: every ε of every norm."""

    header: list[str]
    entries: list[Entry]
    strengths: dict[str, list[str]]
    notes: list[str]


@dataclass(frozen=True)
class Drawing:
    """A plot as SVG inside the page."""

    title: str
    svg: Markup


def write_page(
    folder: Path,
    records: pd.DataFrame,
    identities: Mapping[str, dict[str, Any]],
    summary: pd.DataFrame,
    run: Mapping[str, Any],
    verdicts: list[str],
    claims: list[Table],
    measurements: list[Table],
    tables: list[Table],
    pictures: list[tuple[str, str, str]],
) -> Path:
    """Writes report.html into a run's folder, whose plots are drawn already; returns its path.

    records, identities: Store.load; summary: robustness.summary; run: run.json; verdicts: Markdown
    paragraphs on central claims; pictures: data set, defense and measurement of those that drew some.
    """
    if "seed" in run:  # of a run before there could be several
        run = {**run, "seeds": [run["seed"]]}
    cells = Cells(records, summary, identities, run)
    diagnosis = read_diagnosis(folder)
    failed = flags({"defenses": diagnosis})
    page = _environment().get_template("report.html.jinja")
    text = page.render(
        name=folder.resolve().name,
        run=run,
        counts=cell_counts(summary),
        leaderboard=leaderboard(summary, identities, run, diagnosis),
        legend=robust_legend(summary),
        maps=[heat_map(*panel, cells, failed) for panel in _panels(summary)],
        scale=[shade(share)[0] for share in np.linspace(0, 1, 11)],
        cells=list(cells.all.values()),
        drawings=list(_drawings(summary, folder / "plots")),
        outcomes=list(_outcomes(folder / "plots")),
        galleries=galleries(summary, cells),
        diagnosis=diagnosis,
        symbols=SYMBOLS,
        verdicts=[_bold(paragraph) for paragraph in verdicts],
        claims=claims,
        measurements=measurements,
        tables=tables,
        pictures=[
            _drawing(folder / "plots" / f"{file_name(*parts)}.svg", f"{parts[0]}, {parts[1]}: images, {parts[2]}")
            for parts in pictures
        ],
        images=cells.images.stored,
    )
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("manifold_bench.bench.report.html", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["norm"] = norm_text
    environment.filters["kernels"] = kernels_text
    environment.filters["unbroken"] = _unbroken
    return environment


def cell_counts(summary: pd.DataFrame) -> str:
    """`46 ok, 0 failed, 4 skipped`: cells at each ε, worst cases not counted."""
    cells = summary.loc[summary["attack"] != WORST_CASE, "status"].value_counts()
    return ", ".join(f"{cells.get(status, 0)} {status}" for status in ("ok", "failed", "skipped"))


def leaderboard(
    summary: pd.DataFrame,
    identities: Mapping[str, dict[str, Any]],
    run: Mapping[str, Any],
    diagnosis: list[dict[str, Any]],
) -> Leaderboard:
    """A row for each data set, defense, norm and ε: the clean figures beside the worst case over attacks.

    Noise images have no robust accuracy; how many of them are accepted stands beside, where the run tried.
    """
    fooled = summary[(summary["norm"] == FOOLING) & (summary["attack"] == WORST_CASE)]
    names = {identity["defense"]["label"]: identity["defense"]["name"] for identity in identities.values()}
    names |= {entry["label"]: entry["name"] for entry in run.get("matrix", {}).get("defenses", [])}
    families = {label: family(name) for label, name in names.items()}
    verdicts = {(told["dataset"], told["defense"]): told["verdict"] for told in diagnosis}
    checks = implausible(summary)
    entries: list[Entry] = []
    notes: list[str] = []
    strengths: dict[str, list[str]] = {}
    for dataset, norm, clean, attacked in _panels(summary):
        if norm == FOOLING:
            continue
        marks = Marks(attacked, checks, notes)
        ladder = sorted(attacked["eps"].unique())
        known = strengths.setdefault(norm, [])
        known += [eps_text(eps) for eps in ladder if eps_text(eps) not in known]
        for defense in sorted({*clean["defense"], *attacked["defense"]}):
            unattacked = find(clean, defense=defense)
            for eps in ladder:
                worst = find(attacked, defense=defense, attack=WORST_CASE, eps=eps)
                figures = [
                    _shown(marks, worst, "robust_accuracy"),
                    _shown(marks, worst, "strict_robust_accuracy"),
                    _shown(marks, unattacked, "accuracy"),
                    _shown(marks, unattacked, "rejection"),
                    _median(worst),
                    (NOT_RUN, None) if worst is None else (f"{worst['n']:,}", float(worst["n"])),
                ]
                if len(fooled):
                    figures.append(_shown(marks, find(fooled, dataset=dataset, defense=defense), "error"))
                alone = strongest(attacked, unattacked, defense, eps)
                verdict = verdicts.get((dataset, defense), "not run")
                kind = families.get(defense, "other")
                entries.append(
                    Entry(
                        dataset, norm, norm_text(norm), kind, eps_text(eps), eps == ladder[-1],
                        defense, figures, alone, verdict,
                    )
                )  # fmt: skip
    for known in strengths.values():
        known.sort(key=lambda text: float(text.replace("∞", "inf")))
    header = ["robust", "strict", "clean accuracy", "clean rejection", "median distance", "n attacked"]
    return Leaderboard(header + ["noise accepted"] * bool(len(fooled)), entries, strengths, notes)


def _shown(marks: Marks, row: pd.Series | None, figure: str) -> tuple[str, float | None]:
    text = marks.cell(row, figure)
    return text, None if row is None or np.isnan(row[figure]) else float(row[figure])


def _median(row: pd.Series | None) -> tuple[str, float | None]:
    if row is None or row["status"] in ("failed", "skipped"):
        return NOT_RUN, None
    return distance_text(row["median_distance"]), float(row["median_distance"])


def _panels(summary: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """`tables.panels`, what is no norm of a perturbation behind the others of its data set."""
    return sorted(panels(summary), key=lambda panel: (panel[0], panel[1] == FOOLING))


def strongest(attacked: pd.DataFrame, clean: pd.Series | None, defense: str, eps: float) -> str:
    """The attacks that alone leave least within ε: `pgd: 47.5`."""
    mine = (attacked["defense"] == defense) & (attacked["attack"] != WORST_CASE) & (attacked["status"] == "ok")
    alone = attacked[mine & (attacked["eps"] <= eps)].groupby("attack", sort=False)["robust_accuracy"].min().dropna()
    if alone.empty:
        return NOT_RUN
    if clean is not None and alone.min() >= clean["robust_accuracy"]:
        return "no attack did anything"
    names = list(alone.index[alone == alone.min()])
    others = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{others}: {percent(alone.min())}"


def family(name: str) -> str:
    """The kind of defense that one is, by its name: what its class says of itself, if that can be found here."""
    try:
        return str(registry.find("defenses", name).family)
    except InputError:
        return "other"


def galleries(summary: pd.DataFrame, cells: Cells) -> list[tuple[str, list[Cell]]]:
    """Per data set and norm, for each defense the pictured cell of the attack that leaves least at its largest ε."""
    made = []
    for dataset, norm, _, attacked in _panels(summary):
        single = attacked[(attacked["attack"] != WORST_CASE) & (attacked["status"] == "ok")]
        shown = []
        for defense, rows in single.groupby("defense"):
            figure, sign = ("error", -1) if norm == FOOLING else ("robust_accuracy", 1)
            order = rows.assign(left=sign * rows[figure]).sort_values("left", kind="stable")["attack"].unique()
            found = [cells.find(dataset, str(defense), attack, norm) for attack in order]
            shown += [cell for cell in found if cell and cell.inputs][:1]
        if shown:
            made.append((f"{dataset}, {norm_text(norm)}", shown))
    return made


def _drawings(summary: pd.DataFrame, plots: Path) -> Iterator[Drawing]:
    """Security curves, distances and risk–coverage of every data set and norm, as they were drawn."""
    kinds = {
        "curves": "worst-case robust accuracy over ε with 95 % bands, a line per defense",
        "distances": "robust accuracy over the distance at which attacks beat an input, a panel per defense",
        "risk-coverage": "risk over coverage, clean and attacked, a pair of lines per defense",
    }
    for dataset, norm, _, _ in _panels(summary):
        for kind, what in kinds.items():
            path = plots / f"{file_name(dataset, norm, kind)}.svg"
            if path.exists():
                yield _drawing(path, f"{dataset}, {norm_text(norm)}: {what}")


def _outcomes(plots: Path) -> Iterator[Drawing]:
    """The plots of claims, named after data set, defense, attack and norm."""
    for path in sorted(plots.glob("*--outcomes.svg")):
        what = ", ".join(path.stem.split("--")[:-1])
        yield _drawing(path, f"{what}: shares accepted and right, rejected, accepted and wrong over ε")


def _drawing(path: Path, title: str) -> Drawing:
    return Drawing(title, inlined(path.read_text(encoding="utf-8"), file_name(path.stem), title))


def inlined(svg: str, prefix: str, title: str) -> Markup:
    """An SVG file of Matplotlib as an element of a page: ids of its own, a name for screen readers, and black and white
    as the page's ink and paper, so that it follows a dark page.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    if not box:
        raise InputError(f"{prefix}.svg: not a drawing of this version; run `manifold-bench report` again")
    rest = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", rest).replace("xlink:href", "href")
    rest = rest.replace("#ffffff", "var(--paper)").replace("#000000", "currentColor")
    rest = re.sub(r"\s*\n\s*", " ", rest)
    width, height = (float(side) for side in box.groups())
    frame = (
        f'<svg class="drawing" role="img" viewBox="0 0 {width:g} {height:g}" width="{width:g}pt" height="{height:g}pt">'
        f"<title>{escape(title)}</title>"
    )
    return Markup(frame + rest)


def _unbroken(text: str) -> Markup:
    """A table's text in which no interval is broken between lines."""
    return Markup(re.sub(r"\[[^][]*\]", r'<span class="interval">\g<0></span>', str(escape(text))))


def _bold(paragraph: str) -> Markup:
    """Text in which **…** is strong, as Markdown has it, and nothing else means anything."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(paragraph))))


def read_diagnosis(folder: Path) -> list[dict[str, Any]]:
    """The verdicts of diagnosis.json, an entry for each data set and defense; none where there is no such file."""
    path = folder / "diagnosis.json"
    if not path.exists():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["defenses"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({one_line(error)}); run again") from error
