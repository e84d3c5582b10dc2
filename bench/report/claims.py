"""Claims beside what was measured: tables, a conclusion on each central one, and plots as the papers have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from manifold_bench.bench.metrics import robustness as figures
from manifold_bench.bench.metrics.claims import (
    OUTCOMES,
    RULES,
    STRONGEST,
    Measured,
    over_ladder,
    require_ok,
    share_text,
)
from manifold_bench.bench.metrics.robustness import WRONG, outcomes
from manifold_bench.bench.metrics.shares import Estimate, MissingCells, wilson
from manifold_bench.bench.planning.claims import Budget, Claim, where
from manifold_bench.bench.records.schema import ATTACK, CLEAN
from manifold_bench.bench.report.style import MARKERS, OKABE_ITO, Plot, legend_beside, new_figure
from manifold_bench.bench.report.table import Notes, Table
from manifold_bench.bench.text import NOT_RUN, distance_text, norm_text

RULE = (
    "A claim falls where the 95 % interval of the measured share lies wholly on the wrong side of the published number "
    "(of its own 95 % interval, where it was published as a count): measured as the paper did it, or within one of the "
    "stated budgets under the worst of all valid attacks on each input. It stands only if nothing of that failed or is "
    "missing; else it is open."
)


LEGEND = (
    "Percent of inputs with 95 % Wilson intervals, unless a unit is given. Under the strongest attack: the worst of "
    "all attacks of this run on each input, in that norm, at any ε up to that one. (recalled): the published number is "
    f"from memory, treat it as approximate. {NOT_RUN} nothing published, or not in this run."
)


def published_text(claim: Claim) -> str:
    """The published value as it stands in a table."""
    value = claim.published
    if value is None:
        return "–"
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, tuple):
        text = f"{value[0]:,} of {value[1]:,}"
    elif claim.figure and RULES[claim.figure].kind == "share":
        text = f"{100 * value:.2f}"
    else:
        text = f"{value:g}"
    return f"{text} (recalled)" if claim.recalled else text


def measured(claim: Claim, records: pd.DataFrame, results: Sequence[Mapping[str, Any]] = ()) -> Measured | None:
    """The claim's figure, computed as the paper did it; None where this run has no such cell.

    results: stored measurements. Raises MissingCells with the reason where the cell failed, was skipped, or
    admits no such figure.
    """
    if claim.measurement is not None:
        keys = {"dataset": claim.dataset, "defense": claim.defense, "measurement": claim.measurement}
        for result in results:
            if {key: result[key] for key in keys} == keys:
                if result["status"] != "ok":
                    raise MissingCells(f"{result['status']}: {result['reason']}")
                return Measured(f"{result['values'][result['headline']]:.4g}")
        return None
    assert claim.figure is not None
    rule = RULES[claim.figure]
    cells = [_cell(claim, records, claim.defense)]
    if claim.rejected_by is not None:
        cells.append(_cell(claim, records, claim.rejected_by))
    if any(rows.empty for rows in cells):
        return None
    for rows in cells:
        require_ok(rows)
    found = rule.measure(*cells)
    if isinstance(claim.published, tuple) and found.share is not None:
        return dataclasses.replace(found, text=share_text(found.share, counted=True))
    return found


def _cell(claim: Claim, records: pd.DataFrame, defense: str) -> pd.DataFrame:
    """The rows the claim names: of one ε, or of all."""
    named = {"dataset": claim.dataset, "defense": defense, "attack": claim.attack, "norm": claim.norm}
    return _rows(records, **named, **({} if claim.eps is None else {"eps": claim.eps}))


def _rows(records: pd.DataFrame, **values: str | float | None) -> pd.DataFrame:
    """The rows with these values."""
    for column, value in values.items():
        records = records[records[column] == value]
    return records


def under_strongest(claim: Claim, budget: Budget, records: pd.DataFrame) -> Measured | None:
    """The worst case over all attacks of the run within a budget; remark: which attack did most.

    None where the run has no attack there; raises MissingCells where none has records that are ok.
    """
    there = _of_norm(claim, budget, records)
    if not (there["eps"] == budget.eps).any():
        return None
    rows, status, reason = figures.attacked_within(there, budget.eps)
    if rows.empty:
        raise MissingCells(f"{status}: {reason}")
    found = STRONGEST[_strongest_name(claim)].measure(rows)
    beaten = rows.assign(beaten=outcomes(rows) == WRONG).groupby(["attack", figures.inputs_of(rows)])["beaten"].any()
    alone = beaten.groupby("attack").mean()
    most = (
        f"strongest single attack: {alone.idxmax()}, {100 * alone.max():.2f}" if alone.any() else "no attack succeeded"
    )
    return dataclasses.replace(found, remark=most, scope="" if status == "ok" else reason)


def _of_norm(claim: Claim, budget: Budget, records: pd.DataFrame) -> pd.DataFrame:
    """Every row of the claim's defense in the budget's norm."""
    return _rows(records, dataset=claim.dataset, defense=claim.defense, norm=budget.norm, kind=ATTACK)


def _strongest_name(claim: Claim) -> str:
    return RULES[claim.figure].strongest if claim.figure else "error"


def claims_tables(
    records: pd.DataFrame, claims: Sequence[Claim], results: Sequence[Mapping[str, Any]] = ()
) -> list[Table]:
    """A table for each source: claim, published, measured as the paper did it, and under the strongest attack.

    records, results: of the run; see `measured`.
    """
    made = []
    for source in dict.fromkeys(claim.source for claim in claims):
        notes = Notes()
        rows = [_row(claim, records, results, notes) for claim in claims if claim.source == source]
        header = ["claim", "on", "published", "measured as the paper did it", "under the strongest attack"]
        title = f"{source}: published, measured, and under the strongest attack"
        made.append(Table(("paper", source, "claims"), title, header, rows, notes, LEGEND))
    return made


def _row(claim: Claim, records: pd.DataFrame, results: Sequence[Mapping[str, Any]], notes: Notes) -> list[str]:
    def shown(find: Callable[[], Measured | None]) -> str:
        try:
            found = find()
        except MissingCells as missing:
            return f"no figure {notes.number(str(missing))}"
        if found is None:
            return NOT_RUN
        said = "; ".join(filter(None, (found.remark, found.scope)))
        return f"{found.text} {notes.number(said)}" if said else found.text

    as_written = shown(partial(measured, claim, records, results))
    name = STRONGEST[_strongest_name(claim)].name
    strongest = [
        f"{budget}: {name} {shown(partial(under_strongest, claim, budget, records))}" for budget in claim.strongest
    ]
    attack = "" if claim.attack == CLEAN else f" × {claim.attack}"
    size = "" if claim.norm in (None, "none") or claim.eps is None else f", {where(str(claim.norm), claim.eps)}"
    return [
        claim.text,
        f"{claim.dataset}, {claim.defense}{attack}{size}",
        published_text(claim),
        as_written,
        "; ".join(strongest) or NOT_RUN,
    ]


def conclusions(records: pd.DataFrame, claims: Sequence[Claim], results: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Markdown: for every central claim whether it stands, and the evidence for that; then the rule it is judged by."""
    found = [_paragraph(claim, records, results) for claim in claims if claim.central]
    return [*found, RULE] if found else []


def _paragraph(claim: Claim, records: pd.DataFrame, results: Sequence[Mapping[str, Any]]) -> str:
    name = STRONGEST[_strongest_name(claim)].name
    attack = "without an attack" if claim.attack == CLEAN else f"under {claim.attack}"
    falls: list[str] = []
    missing: list[str] = []
    parts = [f"**{claim.source}: {claim.text}.** Published: {published_text(claim)}."]

    def told(place: str, find: Callable[[], Measured | None]) -> str:
        """The figure there; notes whether it makes the claim fall, or is missing."""
        try:
            found = find()
        except MissingCells as error:
            missing.append(place)
            return f"no figure ({error})"
        if found is None or found.share is None:
            missing.append(place)
            return "not in this run"
        if contradicted(claim, found.share):
            falls.append(place)
        return f"{found.text} ({found.remark})" if found.remark else found.text

    as_written = told("as the paper did it", partial(measured, claim, records, results))
    parts.append(f"Measured as the paper did it ({claim.dataset}, {claim.defense}, {attack}): {as_written}.")
    for budget in claim.strongest:
        figure = told(str(budget), partial(under_strongest, claim, budget, records))
        parts.append(f"Within {budget}: {name} {figure}.")
        within = _of_norm(claim, budget, records)
        if (within.loc[within["eps"] <= budget.eps, "status"] == "failed").any() and str(budget) not in missing:
            missing.append(str(budget))
    parts += _distances_told(claim, records)
    parts.append(_price(claim, records))
    if falls:
        conclusion = f"the claim falls: {', '.join(falls)}"
    elif missing:
        conclusion = f"the claim is open, attacks failed or are missing: {', '.join(missing)}"
    else:
        conclusion = "the claim stands against the attacks of this run"
    return " ".join([*parts, f"By the rule below, **{conclusion}**."])


def _distances_told(claim: Claim, records: pd.DataFrame) -> Iterator[str]:
    """A sentence for each norm of the budgets: the median distance at which an input falls; none for noise.

    Over the inputs that all attacks of the norm attacked: one that few tried would pass for one that holds.
    """
    for norm in dict.fromkeys(budget.norm for budget in claim.strongest):
        rows = _of_norm(claim, Budget(norm=norm), records)
        common, _, _ = figures.attacked_within(rows, rows["eps"].max())
        middle = figures.median_distance(common)
        if not np.isnan(middle):
            n = common["sample"].nunique()
            yield f"Median {norm_text(norm)} distance at which an input falls: {distance_text(middle)}, n = {n:,}."


def contradicted(claim: Claim, share: Estimate) -> bool:
    """Whether the measured share's interval lies wholly on the wrong side of what was published; see RULE."""
    value = claim.published
    assert claim.figure is not None
    published = wilson(*value) if isinstance(value, tuple) else Estimate(value, value, value, 0)
    # an interval includes its own share: at 0 and 1 rounding may leave it outside
    if RULES[claim.figure].better == "high":
        return max(share.high, share.value) < published.low
    return min(share.low, share.value) > published.high


def _price(claim: Claim, records: pd.DataFrame) -> str:
    """The clean rejection rate, in a sentence."""
    clean = _rows(records, dataset=claim.dataset, defense=claim.defense, kind=CLEAN)
    if clean.empty or (clean["status"] != "ok").any():
        return "The clean rejection rate is not in this run."
    return f"Clean rejection rate: {share_text(figures.rejection(clean), False)}."


def claims_plots(records: pd.DataFrame, claims: Sequence[Claim]) -> Iterator[Plot]:
    """Outcomes over ε for every cell that a claim takes over its whole ladder, as the papers plot them.

    Cells that are not in the run, or not ok, have none.
    """
    drawn = set()
    for claim in claims:
        if claim.figure is None or RULES[claim.figure].kind == "number" or not RULES[claim.figure].ladder:
            continue
        parts = (claim.dataset, claim.defense, claim.attack, str(claim.norm), "outcomes")
        rows = _cell(claim, records, claim.defense)
        if parts not in drawn and len(rows) and (rows["status"] == "ok").all():
            drawn.add(parts)
            title = f"{claim.dataset}, {claim.defense} × {claim.attack} ({claim.source})"
            yield Plot(parts, outcomes_plot(over_ladder(rows), title, str(claim.norm)), "claims")


def outcomes_plot(curve: pd.DataFrame, title: str, norm: str) -> Figure:
    """Accuracy, rejection and error over ε (columns as of over_ladder) with their 95 % Wilson bands."""
    figure, axes = new_figure(6.4, 4.0)
    for i, (name, colour) in enumerate(zip(OUTCOMES, (OKABE_ITO[0], OKABE_ITO[4], OKABE_ITO[1]), strict=True)):
        shares = [wilson(round(share * n), int(n)) for share, n in zip(curve[name], curve["n"], strict=True)]
        label = {"accuracy": "accepted and right", "rejection": "rejected", "error": "accepted and wrong"}[name]
        line: dict[str, Any] = {"color": colour, "marker": MARKERS[i], "ms": 4, "lw": 1.6, "clip_on": False}
        axes.plot(curve["eps"], [100 * share.value for share in shares], label=label, zorder=3, **line)
        low, high = (
            [100 * bound for bound in bounds] for bounds in zip(*((s.low, s.high) for s in shares), strict=True)
        )
        axes.fill_between(curve["eps"], low, high, color=colour, alpha=0.15, lw=0)
    axes.set(xlabel=f"ε ({norm_text(norm)})", ylabel=f"% of n = {curve['n'].iloc[0]:,} inputs", ylim=(0, 100))
    axes.set_xlim(left=0)
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.25)
    legend_beside(axes)
    return figure
