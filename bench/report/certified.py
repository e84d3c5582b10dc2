"""Certified accuracy next to robust accuracy under attack: the true robustness lies between the two."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

import pandas as pd

from manifold_bench.bench.metrics.shares import percent_interval
from manifold_bench.bench.records.measurements import CERTIFIED
from manifold_bench.bench.report import style
from manifold_bench.bench.report.table import Table
from manifold_bench.bench.report.tables import Marks, Panel, panels, rows_by
from manifold_bench.bench.text import NOT_RUN, eps_text, norm_text, scale_text
from manifold_bench.defenses.identity import JsonObject

LEGEND = (
    "Percent of inputs, with 95 % Wilson intervals. Certified: the answer is right, and a proof or a statistical "
    "certificate says that no perturbation within ε changes it. Robust: the answer is right, and no attack of this run "
    "changes it, as in the table of robust accuracy. The true robustness lies between the two, up to chance where they "
    f"were measured on different images. {NOT_RUN} not in this run."
)

Shares = dict[tuple[str, float], tuple[float, int]]
"""(defense, ε) → certified accuracy in [0, 1] and its number of images."""


def certified_shares(measured: Sequence[JsonObject], dataset: str, norm: str) -> Shares:
    """Return (defense, ε) → (certified accuracy in [0, 1], number of images), for a data set and norm.

    measured: results of the stored measurements.
    """
    found: Shares = {}
    for result in measured:
        if result["dataset"] != dataset or result["headline"] != CERTIFIED:
            continue
        for name, value in result["values"].items():
            if match := re.fullmatch(rf"certified (\S+), {re.escape(norm_text(norm))}", name):
                found[result["defense"], float(match[1])] = value, int(result["values"]["images"])
    return found


def certified_tables(summary: pd.DataFrame, measured: Sequence[JsonObject]) -> list[Table]:
    """Return a table for each data set and norm that has certificates: one row per defense, both figures at each ε."""
    made = []
    for panel, shares in _with_certificates(summary, measured):
        ladder, marks = sorted({eps for _, eps in shares}), Marks(panel.attacked, {})
        worst, rows = rows_by(panel.worst, "defense", "eps"), []
        for defense in sorted({defense for defense, _ in shares}):
            cells = []
            for eps in ladder:
                share = shares.get((defense, eps))
                cells.append(percent_interval(*share) if share else NOT_RUN)
                cells.append(marks.cell(worst.get((defense, eps)), "robust_accuracy"))
            rows.append([defense, *cells])
        header = ["defense", *(f"{kind}, ε = {eps_text(eps)}" for eps in ladder for kind in ("certified", "robust"))]
        title = f"{panel.title}: certified accuracy, and robust accuracy under the worst case over attacks"
        made.append(Table((panel.dataset, panel.norm, "certified"), title, header, rows, marks.notes, LEGEND))
    return made


def certified_plots(
    summary: pd.DataFrame, measured: Sequence[JsonObject], own: Collection[str] = ()
) -> Iterator[style.Plot]:
    """Yield a plot for each data set and norm that has certificates: both figures over ε, a colour for each defense.

    own: labels of the defenses that the user named.
    """
    for panel, shares in _with_certificates(summary, measured):
        styles = style.defense_styles({defense for defense, _ in shares}, own)
        labels = [f"{defense}, {kind}" for defense in styles for kind in ("certified", "under attack")]
        figure, axes = style.new_figure(style.WIDTH, style.HEIGHT + style.legend_height(labels))
        clean = rows_by(panel.clean, "defense")
        for defense, look in styles.items():
            line = look | {"clip_on": False}
            certified = sorted((eps, 100 * share) for (one, eps), (share, _) in shares.items() if one == defense)
            axes.plot(*zip(*certified, strict=True), label=f"{defense}, certified", **line | {"ls": "--"})
            worst = panel.worst[panel.worst["defense"] == defense]
            left = sorted(zip(worst["eps"], 100 * worst["robust_accuracy"], strict=True))
            start = [(0.0, 100 * clean[defense]["robust_accuracy"])] if defense in clean else []
            if left:
                axes.plot(*zip(*start, *left, strict=True), label=f"{defense}, under attack", **line | {"ls": "-"})
        axes.set(xlabel=f"ε ({scale_text(panel.norm)})", ylabel="% of inputs", ylim=(0, 100))
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        style.titled(axes, f"{panel.title}: certified accuracy, and robust accuracy under all attacks")
        style.legend_below(axes)
        yield style.Plot((panel.dataset, panel.norm, "certified"), figure, "curves")


def _with_certificates(summary: pd.DataFrame, measured: Sequence[JsonObject]) -> Iterator[tuple[Panel, Shares]]:
    for panel in panels(summary):
        if shares := certified_shares(measured, panel.dataset, panel.norm):
            yield panel, shares
