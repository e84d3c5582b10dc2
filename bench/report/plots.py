"""Plots of a run: security curves, risk–coverage curves, heat maps, and grids of attacked images."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from manifold_bench.bench.metrics.robustness import distance_curve, median_distance
from manifold_bench.bench.metrics.selective import area, attacked_answers, clean_answers, operating_point, risk_coverage
from manifold_bench.bench.metrics.summary import FIGURED, attacked_within
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import ATTACK, CALIBRATION, CLEAN
from manifold_bench.bench.records.store import file_name
from manifold_bench.bench.report import style
from manifold_bench.bench.report.grids import image_grid
from manifold_bench.bench.report.order import by_norm
from manifold_bench.bench.report.pictures import pictured
from manifold_bench.bench.report.ranking import named_in
from manifold_bench.bench.report.tables import Panel, matrix_columns, panels, rows_by
from manifold_bench.bench.text import distance_text, eps_text, norm_text, scale_text

CURVE_POINTS = 200
"""Largest number of distances at which a curve over distances is drawn."""

DRAWN = ("dataset", "defense", "key", "reason", "clean_score", "adv_score", *FIGURED)
"""Columns of the records that curves are drawn from; to leave out the others saves time."""

ROWS_PER_GRID = 14
"""Number of rows of one image grid; further rows go to further files."""


class Drawn(NamedTuple):
    """A plot as a file: path of its SVG, title, and name of the section of report.html that shows it ("" for none)."""

    svg: Path
    title: str
    section: str


def write_plots(plots: Iterable[style.Plot], folder: Path) -> list[Drawn]:
    """Write plots as SVG files into a folder, which is made where it is missing; return the files in the same order.

    plots: best a generator, because the style that is set here only holds for what is drawn during the call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with mpl.rc_context(style.STYLE):
        for parts, figure, section in plots:
            svg = folder / f"{file_name(*parts)}.svg"
            FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})  # `savefig` would draw the figure twice
            title = figure.get_suptitle() or figure.axes[0].get_title("left")
            drawn.append(Drawn(svg, " ".join(title.split()), section))
    return drawn


def run_plots(results: Results, summary: pd.DataFrame) -> Iterator[style.Plot]:
    """Yield the plots of a run's records. summary: result of metrics.summary.summary for them."""
    own = named_in(results.run, "defenses")
    minimal = {key for key, entry in results.index.items() if entry.minimal}
    of_dataset = {str(dataset): rows for dataset, rows in results.records[list(DRAWN)].groupby("dataset")}
    for panel in panels(summary):
        if panel.is_noise:
            continue  # one share per attack needs no plot
        records, name = of_dataset[panel.dataset], (panel.dataset, panel.norm)
        if panel.has_curves:
            yield style.Plot((*name, "curves"), security_curves(panel, own=own), "curves")
        searched = _searched(records[records["norm"] == panel.norm], minimal)
        if len(searched):
            yield style.Plot((*name, "distances"), distance_curves(*name, searched, minimal), "curves")
        yield style.Plot((*name, "heatmap"), heat_map(panel))
        scored = _scored(records, panel.norm)
        if len(scored):
            yield style.Plot((*name, "risk-coverage"), risk_coverage_curves(panel, scored, own), "risk-coverage")
    for dataset, rows in _shown(results.records):
        for page, start in enumerate(range(0, len(rows), ROWS_PER_GRID), 1):
            grid = image_grid(dataset, rows[start : start + ROWS_PER_GRID], results.identities)
            yield style.Plot((dataset, "images", str(page)), grid)


def security_curves(*panels: Panel, own: Collection[str] = ()) -> Figure:
    """Return a plot of worst-case robust accuracy over ε with 95 % Wilson bands, one line for each defense.

    The line begins with clean accuracy at ε = 0. A hollow marker means a partial worst case: an attack failed, or the
    attacks share only some inputs. A failed or skipped worst case leaves a gap. Several panels are drawn one below the
    other. own: labels of the defenses that the user named, which are bold.
    """
    figure = style.blank_figure(
        style.WIDTH, sum(style.HEIGHT + style.legend_height(panel.defenses) for panel in panels)
    )
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _draw_security_curves(axes, panel, own)
    return figure


def _draw_security_curves(axes: Axes, panel: Panel, own: Collection[str]) -> None:
    dataset, norm, clean, _ = panel
    worst = panel.worst
    styles = style.defense_styles(worst["defense"], own)
    for (defense, look), bold in zip(styles.items(), style.weights(len(styles)), strict=True):
        rows = worst[worst["defense"] == defense]
        points = pd.concat([clean[clean["defense"] == defense], rows]).sort_values("eps")
        x, y = points["eps"].to_numpy(), 100 * points["robust_accuracy"].to_numpy()
        line = look | {"ms": 4.5 * bold, "clip_on": False}
        axes.plot(x, y, label=defense, lw=(1.9 if defense in own else 1.3) * bold, zorder=3, **line)
        partial = (points["status"] == "partial").to_numpy(dtype=bool)
        if partial.any():
            axes.plot(x[partial], y[partial], markerfacecolor="white", zorder=4, **(line | {"ls": " "}))
        low, high = 100 * points["robust_low"], 100 * points["robust_high"]
        axes.fill_between(x, low, high, color=line["color"], alpha=0.15, lw=0)
    axes.set(xlabel=f"ε ({scale_text(norm)})", ylabel="robust accuracy, % of inputs", ylim=(0, 100))
    axes.set_xlim(0, worst["eps"].max())
    axes.locator_params(axis="x", nbins=8)
    axes.xaxis.set_major_formatter("{x:g}")
    sizes = sorted(worst["eps"].unique())
    if any("/" in eps_text(eps) for eps in sizes):
        axes.set_xticks([0.0, *sizes], ["0", *map(eps_text, sizes)])
    style.titled(axes, f"{dataset}: worst case over all {norm_text(norm)} attacks")
    axes.grid(alpha=0.25)
    if len(worst):
        title = "defense" + ("\n(hollow: partial)" if (worst["status"] == "partial").any() else "")
        style.legend_below(axes, title)


def distance_curves(dataset: str, norm: str, records: pd.DataFrame, minimal: Collection[str]) -> Figure:
    """Return a plot of robust accuracy over distance under minimal-distance attacks, one panel for each defense.

    records: rows of that data set and norm, all ok. minimal: keys of the jobs of minimal-distance attacks. The legend
    gives the median distance of each attack. The grey curve is that of all attacks together. It ends at the largest ε
    of the attacks that search at given ε alone, because only some attacks searched beyond.
    """
    panels = list(records.groupby("defense"))
    searching = sorted(records.loc[records["key"].isin(minimal), "attack"].unique())
    legend = style.legend_height(f"{name}\nmedian" for name in ("all attacks, up to the largest ε = 0.3", *searching))
    figure = style.blank_figure(style.WIDTH, 0.8 + (2.3 + legend) * len(panels))
    grid = figure.subplots(len(panels), squeeze=False)[:, 0]
    farthest = records["distance"][np.isfinite(records["distance"])].max()
    for axes, (defense, rows) in zip(grid, panels, strict=True):
        bounded = rows.loc[~rows["key"].isin(minimal), "eps"].max()  # NaN where every attack searched at all distances
        together = "all attacks" if np.isnan(bounded) else f"all attacks, up to the largest ε = {eps_text(bounded)}"
        named: list[tuple[str, pd.DataFrame, style.Style]] = [(together, rows, {"color": "0.7", "lw": 4})]
        for i, attack in enumerate(searching):
            own = rows[rows["attack"] == attack]
            named.append((attack, own, style.line_style(i) | {"marker": "", "lw": 1.5}))
        for name, own, line in named:
            distances = own["distance"][np.isfinite(own["distance"])]
            if len(own):
                end = bounded if name == together and not np.isnan(bounded) else np.inf
                points = np.linspace(0, 1, CURVE_POINTS)
                steps = np.quantile(distances, points, method="nearest") if len(distances) else []
                shown = [eps for eps in np.unique([0.0, *steps]).tolist() if eps < end]
                curve = distance_curve(own, shown if np.isinf(end) else [*shown, end])
                label = f"{name}\nmedian {distance_text(median_distance(own))}"
                axes.step(curve["eps"], 100 * curve["value"], where="post", label=label, **line)
        axes.set_ylim(0, 100)
        axes.set_xlim(0, farthest if farthest > 0 else 1)
        axes.set(xlabel=f"distance ({scale_text(norm)})", ylabel="robust accuracy, %")
        axes.set_title(str(defense), loc="left", fontsize=9)
        axes.grid(alpha=0.25)
        style.legend_below(axes)
    title = f"{dataset}, {norm_text(norm)}: robust accuracy over the distances found"
    figure.suptitle(textwrap.fill(title, style.TITLE), fontsize=9)
    return figure


def risk_coverage_curves(panel: Panel, records: pd.DataFrame, own: Collection[str] = ()) -> Figure:
    """Return plots of risk over coverage of every defense: on clean inputs (above), and in the worst case (below).

    records: clean and attacked rows of that data set and norm, of defenses that give scores. The worst case is at the
    norm's largest ε. A large marker shows the defense at its own threshold, hollow where the worst case is partial. The
    legend gives the mean risk of each curve, which is the area under it. Attacked curves are lower bounds of the risk
    (see `metrics.selective`). Each of the two has a scale of its own, because the risk without an attack is far smaller
    than under attack. own: labels of the defenses that the user named.
    """
    largest = records["eps"].max()
    styles = style.defense_styles(records["defense"], own)
    legend = style.legend_height(f"{defense}\nmean risk 0.00 %, attacked 00.0 %" for defense in styles)
    figure = style.blank_figure(style.WIDTH, 2 * style.HEIGHT - 0.2 + legend)
    grid, bold = figure.subplots(2, sharex=True), style.weights(len(styles))
    rows_of = rows_by(panel.clean, "defense"), rows_by(panel.worst[panel.worst["eps"] == largest], "defense")
    for i, (defense, look) in enumerate(styles.items()):
        rows = records[records["defense"] == defense]
        attacked, *_ = attacked_within(rows[rows["kind"] == ATTACK], largest)
        areas = []
        for axes, row, answers in zip(grid, rows_of, (clean_answers(rows), attacked_answers(attacked)), strict=True):
            if answers.empty:
                continue
            curve = 100 * risk_coverage(answers["score"], answers["wrong"])
            areas.append(_risk_text(area(curve) / 100))
            # each defense has its markers at other places, so that lines which coincide can still be distinguished
            line = look | {"ls": "-", "clip_on": False}
            places: style.Style = {"ms": 3.5, "markevery": (0.2 * (i + 0.5) / len(bold), 0.2)}
            axes.plot(curve["coverage"], curve["risk"], lw=1.2 * bold[i], zorder=3, **line | places)
            coverage, risk = operating_point(row[defense])
            filling = "white" if row[defense]["status"] == "partial" else line["color"]
            point: style.Style = {"ls": " ", "ms": 5 * bold[i], "mfc": filling}
            axes.plot(100 * coverage, 100 * risk, zorder=4, **line | point)
        label = f"{defense}\nmean risk {', attacked '.join(areas)}"
        grid[1].plot([], [], label=label, **look | {"ls": "-", "ms": 6})
    title = f"{panel.dataset}: risk over coverage, clean and under all {norm_text(panel.norm)} attacks"
    figure.suptitle(textwrap.fill(title, style.TITLE), fontsize=9)
    style.titled(grid[0], "clean")
    style.titled(grid[1], f"attacked, ε = {eps_text(largest)}")
    grid[1].set(xlabel="coverage, % of inputs accepted", xlim=(0, 100))
    for axes in grid:
        axes.set_ylabel("risk, % of accepted that are wrong")
        axes.set_ylim(0, max(1, 1.05 * axes.dataLim.y1))
        axes.grid(alpha=0.25)
    style.legend_below(grid[1], "defense (large marker: as deployed; hollow: partial worst case)")
    return figure


def _risk_text(risk: float) -> str:
    """Return a risk in percent as text: 0.05 % for 0.0492, 99.7 % for 99.7."""
    return f"{risk:.2f} %" if risk < 1 else f"{risk:.1f} %"


def heat_map(panel: Panel) -> Figure:
    """Return a heat map of the robust accuracy of every defense under every attack, at that attack's largest ε.

    The first column is clean accuracy, the last one the worst case. Hatched grey means failed, skipped, or not in the
    run (–).
    """
    defenses, columns = panel.defenses, matrix_columns(panel)
    at = rows_by(pd.concat([panel.clean, panel.attacked]), "defense", "attack", "eps")
    heads = [
        CLEAN if attack == CLEAN else style.wrapped(f"{style.folded(attack)}\nε = {eps_text(eps)}")
        for attack, eps in columns
    ]
    names = list(map(style.wrapped, defenses))
    head, name = (max(len(line) for text in texts for line in text.split("\n")) for texts in (heads, names))
    width = 1.7 + 0.62 * len(columns) + max(0.05 * head, 0.08 * name)  # heads are written at an angle
    figure, axes = style.new_figure(width, 1.6 + 0.36 * len(defenses) + 0.05 * head)
    shares = np.full((len(defenses), len(columns)), np.nan)
    for i, defense in enumerate(defenses):
        for j, (attack, eps) in enumerate(columns):
            row = at.get((defense, attack, eps))
            if row is None or np.isnan(row["robust_accuracy"]):
                _hatched(axes, j, i, "–" if row is None else str(row["status"]))
                continue
            shares[i, j] = row["robust_accuracy"]
            text = f"{100 * shares[i, j]:.1f}" + ("‡" if row["status"] == "partial" else "")
            look: style.Style = {"color": style.shade(shares[i, j])[1], "fontsize": 8, "in_layout": False}
            axes.text(j, i, text, ha="center", va="center", **look)
    image = axes.imshow(100 * shares, cmap=style.COLOURS, vmin=0, vmax=100, aspect="auto", interpolation="none")
    axes.set_xticks(range(len(columns)), heads, rotation=50, ha="right", rotation_mode="anchor", fontsize=7.5)
    axes.get_xticklabels()[-1].set_fontweight("bold")
    axes.set_yticks(range(len(defenses)), names)
    axes.set(xlabel="attack (‡ partial; – not in this run)", ylabel="defense")
    axes.set_title(f"{panel.title}: robust accuracy at each attack's largest ε", loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="robust accuracy, %", fraction=0.05, pad=0.02)
    return figure


def measured_curves(
    title: str, name: str, lines: dict[str, list[tuple[float, float]]], own: Collection[str] = ()
) -> Figure:
    """Return a plot of a measurement's values over the numbers in their names, one line for each defense.

    name: of the values without the number, the label of the x axis. lines: defense → points (number, value). own:
    labels of the defenses that the user named.
    """
    figure, axes = style.new_figure(style.WIDTH, style.HEIGHT + style.legend_height(lines))
    styles = style.defense_styles(lines, own)
    for (defense, look), bold in zip(styles.items(), style.weights(len(styles)), strict=True):
        line = look | {"ms": 4.5 * bold, "clip_on": False}
        axes.plot(*zip(*lines[defense], strict=True), label=defense, lw=1.3, **line)
    axes.set(xlabel=name, ylabel="value")
    axes.set_ylim(bottom=0)
    if all(value <= 1 for points in lines.values() for _, value in points):
        axes.set(ylim=(0, 1), ylabel="share")
    style.titled(axes, title)
    axes.grid(alpha=0.25)
    style.legend_below(axes, "defense")
    return figure


def _hatched(axes: Axes, x: float, y: float, text: str) -> None:
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="0.9", edgecolor="0.75", hatch="////", lw=0))
    ground = {"facecolor": "0.95", "edgecolor": "none", "pad": 1}
    axes.text(x, y, text, ha="center", va="center", fontsize=7, bbox=ground, in_layout=False)


def _scored(records: pd.DataFrame, norm: str) -> pd.DataFrame:
    """Return the clean rows and those of a norm, of the defenses that give a score for every input and may reject some.

    A defense may reject where it does so in these rows, or where it is calibrated, so that a threshold can be set on
    its score. records: rows of one data set.
    """
    ok, clean, defense = records["status"] == "ok", records["kind"] == CLEAN, records["defense"]
    here = clean | (records["norm"] == norm)
    silent = defense[here & ok & (records["clean_score"].isna() | records["adv_score"].isna())]
    rejects = here & (records["clean_rejected"] | records["adv_rejected"])
    rejecting = defense[rejects | (records["kind"] == CALIBRATION)]
    return records[here & defense.isin(set(defense[clean & ok]) & set(rejecting) - set(silent))]


def _searched(records: pd.DataFrame, minimal: Collection[str]) -> pd.DataFrame:
    """Return the rows that are ok, of the defenses on which a minimal-distance attack ran.

    records: rows of one data set and norm. minimal: keys of the jobs of minimal-distance attacks.
    """
    ok = records[records["status"] == "ok"]
    return ok[ok["defense"].isin(ok.loc[ok["key"].isin(minimal), "defense"])]


def _shown(records: pd.DataFrame) -> Iterator[tuple[str, list[pd.DataFrame]]]:
    """Yield each data set with the rows that have images, a frame for each attacked cell at its largest ε."""
    for dataset, rows in pictured(records).groupby("dataset"):
        of_norms = [of_norm for _, of_norm in by_norm(rows, "defense")]
        yield str(dataset), [cell for of_norm in of_norms for _, cell in of_norm.groupby("attack")]
