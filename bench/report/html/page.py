"""Writes report.html: one file with every result of a run, which needs no network and computes no figure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.metrics.summary import strongest
from manifold_bench.bench.records.provenance import kernels_text
from manifold_bench.bench.records.schema import WORST_CASE, Row
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.diagnosis import by_dataset, found_text, not_run_lines, overall_text, ran_titles
from manifold_bench.bench.report.html.cells import CellDetails, Cells, heat_map
from manifold_bench.bench.report.html.reproduce import run_command
from manifold_bench.bench.report.plots import Drawn
from manifold_bench.bench.report.ranking import new_attacks
from manifold_bench.bench.report.style import shade
from manifold_bench.bench.report.tables import Marks, panels, robust_legend, rows_by
from manifold_bench.bench.text import NOT_RUN, distance_text, eps_text, norm_text, percent
from manifold_bench.defenses.identity import JsonObject

LONG = 14
"""Number of characters from which on the lines of a name may break between its parts."""


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard: one defense at one ε.

    largest: whether ε is the norm's largest. own: whether the user named the defense. rank: 1 + the number of defenses
    with a larger robust accuracy at that norm and ε; None where there is no figure. figures: text of each figure, and
    the number by which its column is sorted (None where there is no figure). strongest: names of the strongest attacks,
    and what they leave. diagnosis: result.
    """

    dataset: str
    norm: str
    family: str
    eps: str
    largest: bool
    defense: str
    own: bool
    rank: int | None
    figures: list[tuple[str, float | None]]
    strongest: str
    diagnosis: str


@dataclass(frozen=True)
class Leaderboard:
    """The leaderboard of report.html.

    header: headings of the columns with figures. strengths: norm → its ε, ascending. notes: texts that explain the
    numbered marks.
    """

    header: list[str]
    entries: list[Entry]
    strengths: dict[str, list[str]]
    notes: list[str]


def write_page(report: Report, plots: Sequence[Drawn]) -> Path:
    """Write report.html into the run's folder, with the plots inside it, and return its path."""
    environment = Environment(
        loader=PackageLoader("manifold_bench.bench.report.html", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"norm": norm_text, "kernels": kernels_text}
    environment.filters |= {"inlined": _inlined, "unbroken": _unbroken, "marked": _marked, "parted": _parted}
    environment.filters |= {"options_whole": _options_whole, "overall": overall_text, "found": found_text}
    environment.filters |= {"ran_titles": ran_titles, "not_run_lines": not_run_lines, "meanings": _meanings}
    cells = Cells(report)
    text = environment.get_template("report.html.jinja").render(
        report=report,
        run=report.results.run,
        name=report.results.folder.resolve().name,
        command_line=run_command(report.results.run),
        datasets=by_dataset(report.diagnosis),
        own_attacks=new_attacks(report.results.run),
        leaderboard=leaderboard(report),
        legend=robust_legend(report.summary),
        maps=[heat_map(panel, cells, report.flags) for panel in panels(report.summary)],
        scale=[shade(share)[0] for share in np.linspace(0, 1, 11)],
        cells=cells,
        plots=plots,
        galleries=galleries(report.summary, cells),
    )
    path = report.results.folder / "report.html"
    path.write_text(text, encoding="utf-8", errors="replace")  # a folder may have a name that is no text
    return path


def leaderboard(report: Report) -> Leaderboard:
    """Return the leaderboard: a row for each data set, norm, ε and defense, the most robust defense first.

    The largest ε of a norm comes first.
    A row holds the figures of the worst case over attacks, those on clean images and, where the run attacked noise
    images, the share of these that the defense accepts.
    """
    summary, results = report.summary, report.results
    fooled = summary[(summary["norm"] == FOOLING) & (summary["kind"] == WORST_CASE)]
    accepting = rows_by(fooled, "dataset", "defense")
    families = {results.identities[key]["defense"]["label"]: entry.family for key, entry in results.index.items()}
    diagnosed = {(one["dataset"], one["defense"]): overall_text(one) for one in report.diagnosis["defenses"]}
    entries: list[Entry] = []
    strengths: dict[str, set[float]] = {}
    marks = Marks(summary, report.doubts)
    for panel in panels(summary):
        dataset, norm, clean, attacked = panel
        if panel.is_noise:
            continue
        ladder, ranked = sorted(attacked["eps"].unique()), panel.ranked
        strengths.setdefault(norm, set()).update(ladder)
        unattacked = rows_by(clean, "defense")
        worst = rows_by(panel.worst, "defense", "eps")
        ranks = panel.worst.groupby("eps")["robust_accuracy"].rank(method="min", ascending=False)
        rank_of = dict(zip(zip(panel.worst["defense"], panel.worst["eps"], strict=True), ranks, strict=True))
        of_defense = dict(iter(pd.concat([clean, attacked]).groupby("defense")))
        for eps in reversed(ladder):
            met = [name for name in ranked if (name, eps) in worst]  # the others would only repeat clean figures
            for defense in sorted(met, key=lambda name: _order(worst[name, eps])):
                before, at = unattacked.get(defense), worst[defense, eps]
                figures = [
                    _shown(marks, at, "robust_accuracy"),
                    _shown(marks, at, "strict_robust_accuracy"),
                    _shown(marks, before, "accuracy"),
                    _shown(marks, before, "rejection"),
                    _median(at),
                    (f"{at['n']:,}", float(at["n"])),
                ]
                if len(fooled):
                    figures.append(_shown(marks, accepting.get((dataset, defense)), "error"))
                alone = strongest(of_defense[defense], eps)
                attack = alone.names + (f": {percent(alone.share)}" if alone.attacks else "")
                family, diagnosis = families.get(defense, "not stated"), diagnosed.get((dataset, defense), "not run")
                where = (dataset, norm, family, eps_text(eps), eps == ladder[-1])
                rank = rank_of.get((defense, eps), np.nan)
                place = None if np.isnan(rank) else int(rank)
                entries.append(Entry(*where, defense, defense in report.own, place, figures, attack, diagnosis))
    ladders = {norm: list(dict.fromkeys(map(eps_text, sorted(known)))) for norm, known in strengths.items()}
    header = ["robust", "strict", "clean accuracy", "clean rejection", "median distance", "n attacked"]
    return Leaderboard(header + ["noise accepted"] * bool(len(fooled)), entries, ladders, marks.notes)


def _order(row: Row) -> float:
    """Return the number by which rows of worst cases are sorted: the most robust first, those without a figure last."""
    return 1.0 if np.isnan(row["robust_accuracy"]) else -float(row["robust_accuracy"])


def _shown(marks: Marks, row: Row | None, figure: str) -> tuple[str, float | None]:
    text = marks.cell(row, figure)
    return text, None if row is None or np.isnan(row[figure]) else float(row[figure])


def _median(row: Row) -> tuple[str, float | None]:
    if row["status"] in ("failed", "skipped"):
        return NOT_RUN, None
    return distance_text(row["median_distance"]), float(row["median_distance"])


def galleries(summary: pd.DataFrame, cells: Cells) -> list[tuple[str, list[CellDetails]]]:
    """Return for each data set and norm its title and the cells whose images are shown, one for each defense.

    That cell is the one of the attack that leaves the lowest robust accuracy (of noise: that gets most accepted), and
    of several such attacks the one that took most passes.
    """
    made = []
    for panel in panels(summary):
        shown = []
        for defense, rows in panel.single.groupby("defense"):
            # noise has no right answers, so its attacks are ordered by what is accepted
            figure = "rejection" if panel.is_noise else "robust_accuracy"
            spared = -rows["forwards"] - rows["backwards"]
            order = rows.assign(spared=spared).sort_values([figure, "spared"], kind="stable")
            found = [cells.find(panel.dataset, str(defense), attack, panel.norm) for attack in order["attack"].unique()]
            shown += [cell for cell in found if cell and cell.inputs][:1]
        if shown:
            made.append((panel.title, shown))
    return made


def _meanings(entries: Sequence[JsonObject]) -> dict[str, str]:
    """Return the title of each check of a diagnosis → what it means, each once."""
    return {check["title"]: check["meaning"] for entry in entries for check in entry["checks"] if check["meaning"]}


def _inlined(plot: Drawn) -> Markup:
    """Return an SVG file of Matplotlib as an HTML element.

    Its ids get a prefix, so that plots on one page do not clash; screen readers find its title; black and white become
    the page's own colours, so that it also reads on a dark page. Raises InputError for an SVG file of another form.
    """
    svg, prefix = plot.svg.read_text(encoding="utf-8"), plot.svg.stem
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    if not box:
        raise InputError(f"{plot.svg.name}: not a drawing of this version; run `manifold-bench report` again")
    rest = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", rest).replace("xlink:href", "href")
    rest = rest.replace("#ffffff", "var(--paper)").replace("#000000", "currentColor")
    rest = re.sub(r"\s*\n\s*", " ", rest)
    width, height = (float(side) for side in box.groups())
    frame = (
        f'<svg class="drawing" role="img" viewBox="0 0 {width:g} {height:g}" width="{width:g}pt" height="{height:g}pt">'
        f"<title>{escape(plot.title)}</title>"
    )
    return Markup(frame + rest)


def _unbroken(text: str) -> Markup:
    """Return a table's text as HTML that keeps each interval in brackets on one line."""
    return Markup(re.sub(r"\[[^][]*\]", r'<span class="interval">\g<0></span>', str(_parted(text))))


def _parted(text: str) -> Markup:
    """Return a text as HTML in which the lines of a long name break between its parts, as after my_file.py: in one."""
    places = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[:(,_/@.])(?=[\w@])"
    words = re.split(rf"(\S{{{LONG},}})", text)  # every second part is long
    return Markup("").join(
        Markup("<wbr>").join(re.split(places, word)) if i % 2 else escape(word) for i, word in enumerate(words)
    )


def _options_whole(command: str) -> Markup:
    """Return a command as HTML in which no line breaks inside the name of an option, such as --seed."""
    return Markup(re.sub(r"(^| )(--?[a-z][-a-z]*)", r'\1<span class="nowrap">\2</span>', str(escape(command))))


def _marked(text: str) -> Markup:
    """Return a text as HTML in which **…** is strong and `…` is code; all else is shown as it is written."""
    parts = re.split(r"`([^`]+)`", str(_parted(text)))  # every second part is code
    parts[::2] = [re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", part) for part in parts[::2]]
    parts[::2] = [re.sub(r"--[a-z][-a-z]*", r'<span class="nowrap">\g<0></span>', part) for part in parts[::2]]
    parts[1::2] = [f"<code>{part}</code>" for part in parts[1::2]]
    return Markup("".join(parts))
