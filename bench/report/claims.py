"""Claims of papers compared with measurements: tables, a conclusion on each central claim, and plots as in papers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from manifold_bench.bench.metrics import robustness as figures
from manifold_bench.bench.metrics.claims import Measured, over_ladder, require_ok, share_text
from manifold_bench.bench.metrics.shares import Estimate, MissingCells, wilson
from manifold_bench.bench.metrics.summary import attacked_within
from manifold_bench.bench.metrics.unconverged import FELL_LATE
from manifold_bench.bench.planning.claims import Budget, Claim, where
from manifold_bench.bench.records.schema import ATTACK, CLEAN
from manifold_bench.bench.report.style import HEIGHT, MARKERS, OKABE_ITO, WIDTH, Plot, legend_below, new_figure, titled
from manifold_bench.bench.report.table import Notes, Table
from manifold_bench.bench.report.tables import Doubt, Doubts
from manifold_bench.bench.text import NOT_RUN, distance_text, norm_text
from manifold_bench.defenses.identity import JsonObject

RULE = (
    "A claim is contradicted if the 95 % interval of a measured share lies wholly on the wrong side of the published "
    "number, or of its 95 % interval where the paper gives a count. Shares are measured as the paper did it and, "
    "within each of the stated perturbation budgets, under the worst of all attacks on each input. A claim counts as "
    "not contradicted if all of these were measured and none contradicts it. Where one failed or is missing, the claim "
    "is open."
)

AS_PUBLISHED = "as the paper did it"

Evidence = dict[str, Measured | MissingCells | None]
"""What was measured for a claim as the paper did it (key AS_PUBLISHED) and within each budget (key: its text).

See `measured` and `under_strongest`; where these raise MissingCells, the exception is the value.
"""

LEGEND = (
    "Percent of inputs with 95 % Wilson intervals, unless a unit is given. Under the strongest attack: the worst "
    "outcome of each input over all attacks of this run in that norm, at every ε up to the given one. § attacks look "
    "too weak. (recalled): the published number is quoted from memory and approximate. "
    f"{NOT_RUN} nothing published, or not in this run."
)

NO_DOUBTS: Doubts = MappingProxyType({})
"""The doubts of a run in which no attack looks too weak."""


def published_text(claim: Claim) -> str:
    """Return the published value of a claim as the text that tables show."""
    value = claim.published
    if value is None:
        return "–"
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, tuple):
        text = f"{value[0]:,} of {value[1]:,}"
    elif claim.rule.kind == "share":
        text = f"{100 * value:.2f}"
    else:
        text = f"{value:g}"
    return f"{text} (recalled)" if claim.recalled else text


def measured(claim: Claim, records: pd.DataFrame, results: Sequence[JsonObject] = ()) -> Measured | None:
    """Return the claim's figure, computed as the paper did it; None where this run has no such cell.

    results: stored measurements. Raises MissingCells with the reason where the cell failed or was skipped, or where
    the figure is not defined for it.
    """
    if claim.measurement is not None:
        keys = {"dataset": claim.dataset, "defense": claim.defense, "measurement": claim.measurement}
        for result in results:
            if {key: result[key] for key in keys} == keys:
                if result["status"] != "ok":
                    raise MissingCells(f"{result['status']}: {result['reason']}")
                return Measured(f"{result['values'][result['headline']]:.4g}")
        return None
    cells = [_cell(claim, records, defense) for defense in (claim.defense, claim.rejected_by) if defense]
    if any(rows.empty for rows in cells):
        return None
    for rows in cells:
        require_ok(rows)
    found = claim.rule.measure(*cells)
    if isinstance(claim.published, tuple) and found.share is not None:
        return dataclasses.replace(found, text=share_text(found.share, counted=True))
    return found


def _cell(claim: Claim, records: pd.DataFrame, defense: str) -> pd.DataFrame:
    """Return the rows that the claim is about: those of its ε, or of every ε where it names none."""
    named = {"dataset": claim.dataset, "defense": defense, "attack": claim.attack, "norm": claim.norm}
    return _rows(records, **named, **({} if claim.eps is None else {"eps": claim.eps}))


def _rows(records: pd.DataFrame, **values: str | float | None) -> pd.DataFrame:
    """Return the rows that have these values in these columns."""
    for column, value in values.items():
        records = records[records[column] == value]
    return records


def under_strongest(claim: Claim, budget: Budget, records: pd.DataFrame, doubts: Doubts = NO_DOUBTS) -> Measured | None:
    """Return the worst case over all attacks of the run within a budget; its remark names the strongest attack.

    doubts: result of tables.doubts_of; those on this worst case are stored with the figure, unless it can't be worse.
    Returns None where no attack of the run has this norm and ε; raises MissingCells where none of them is ok.
    """
    there = _within(claim, budget, records)
    if not (there["eps"] == budget.eps).any():
        return None
    rows, status, reason = attacked_within(there, budget.eps)
    if rows.empty:
        raise MissingCells(f"{status}: {reason}")
    wrong = rows.assign(wrong=figures.outcomes(rows) == figures.WRONG)
    alone = wrong.groupby(["attack", figures.inputs_of(rows)])["wrong"].any().groupby("attack").mean()
    most = (
        f"strongest single attack: {alone.idxmax()}, {100 * alone.max():.2f}" if alone.any() else "no attack succeeded"
    )
    found, strongest = claim.rule.strongest.measure(rows), claim.rule.strongest
    final = found.share is not None and found.share.value == strongest.worst
    weak = () if final else tuple(_doubts_within(claim, budget, there, doubts))
    return dataclasses.replace(found, remark=most, scope="" if status == "ok" else reason, doubts=weak)


def _doubts_within(claim: Claim, budget: Budget, there: pd.DataFrame, doubts: Doubts) -> Iterator[Doubt]:
    """Yield the doubts on the worst case within a budget. there: the attacked rows within it.

    Inputs that fell late at a smaller ε count, because longer attacks there may beat more inputs within the budget.
    Other doubts count only at the budget itself: where its attacks are strong enough, those at smaller ε needn't be.
    """
    for eps in sorted(there["eps"].unique()):
        doubt = doubts.get((claim.dataset, claim.defense, budget.norm, eps, "robust_accuracy"))
        if doubt is not None and (eps == budget.eps or doubt.reason == FELL_LATE):
            yield doubt


def _within(claim: Claim, budget: Budget, records: pd.DataFrame) -> pd.DataFrame:
    """Return every attacked row of the claim's defense within the budget."""
    rows = _rows(records, dataset=claim.dataset, defense=claim.defense, norm=budget.norm, kind=ATTACK)
    return rows[rows["eps"] <= budget.eps]


def _evidence(claim: Claim, records: pd.DataFrame, results: Sequence[JsonObject], doubts: Doubts) -> Evidence:
    """Return everything that was measured for a claim; arguments are those of claims_tables."""
    ways: dict[str, Callable[[], Measured | None]] = {AS_PUBLISHED: partial(measured, claim, records, results)}
    ways |= {str(budget): partial(under_strongest, claim, budget, records, doubts) for budget in claim.strongest}
    found: Evidence = {}
    for place, find in ways.items():
        try:
            found[place] = find()
        except MissingCells as missing:
            found[place] = missing
    return found


def claims_tables(
    records: pd.DataFrame, claims: Sequence[Claim], results: Sequence[JsonObject] = (), doubts: Doubts = NO_DOUBTS
) -> list[Table]:
    """Return a table for each paper: its claims, each with the published value, the value measured as the paper did it,
    and the value under the strongest attack.

    records: per-input records of the run; results: its stored measurements. doubts: result of tables.doubts_of.
    """
    made = []
    for source in dict.fromkeys(claim.source for claim in claims):
        notes = Notes()
        cited = [claim for claim in claims if claim.source == source]
        rows = [_row(claim, _evidence(claim, records, results, doubts), notes) for claim in cited]
        header = ["claim", "on", "published", f"measured {AS_PUBLISHED}", "under the strongest attack"]
        title = f"{source}: published, measured, and under the strongest attack"
        made.append(Table(("paper", source, "claims"), title, header, rows, notes, LEGEND))
    return made


def _row(claim: Claim, found: Evidence, notes: Notes) -> list[str]:
    def shown(one: Measured | MissingCells | None) -> str:
        if one is None:
            return NOT_RUN
        if isinstance(one, MissingCells):
            return f"no figure {notes.number(str(one))}"
        said = "; ".join(filter(None, (one.remark, one.scope)))
        marks = [notes.number(said)] if said else []
        for reason, evidence in one.doubts:
            cell = f"{claim.dataset}, {claim.defense}, {evidence}"
            marks.append("§" + notes.number_shared(f"§ the attacks look too weak: {reason}", cell))
        return " ".join([one.text, *dict.fromkeys(marks)])

    texts = {place: shown(one) for place, one in found.items()}
    as_written = texts.pop(AS_PUBLISHED)
    attack = "" if claim.attack == CLEAN else f" × {claim.attack}"
    size = "" if claim.norm in (None, "none") or claim.eps is None else f", {where(str(claim.norm), claim.eps)}"
    return [
        claim.text,
        f"{claim.dataset}, {claim.defense}{attack}{size}",
        published_text(claim),
        as_written,
        "; ".join(f"{place}: {claim.rule.strongest.name} {text}" for place, text in texts.items()) or NOT_RUN,
    ]


def conclusions(
    records: pd.DataFrame, claims: Sequence[Claim], results: Sequence[JsonObject] = (), doubts: Doubts = NO_DOUBTS
) -> list[str]:
    """Return Markdown paragraphs: evidence and conclusion for each central claim, then the rule that decides.

    Arguments are those of claims_tables.
    """
    found = [
        _paragraph(claim, records, _evidence(claim, records, results, doubts)) for claim in claims if claim.central
    ]
    return [*found, RULE] if found else []


def _paragraph(claim: Claim, records: pd.DataFrame, found: Evidence) -> str:
    shares = {place: one.share for place, one in found.items() if isinstance(one, Measured) and one.share is not None}
    falls = [place for place, share in shares.items() if contradicted(claim, share)]
    failed = {str(at) for at in claim.strongest if (_within(claim, at, records)["status"] == "failed").any()}
    missing = [place for place in found if place in failed or place not in shares]

    def said(place: str) -> str:
        one = found[place]
        if isinstance(one, MissingCells):
            return f"no figure ({one})"
        if one is None or one.share is None:
            return "not in this run"
        marks = ["§"] * bool(one.doubts) + [f"({one.remark})"] * bool(one.remark)
        return " ".join([one.text, *marks])

    notes = Notes()
    for reason, evidence in (doubt for one in found.values() if isinstance(one, Measured) for doubt in one.doubts):
        notes.number_shared(f"§ The attacks look too weak: {reason}", evidence)

    attack = "without an attack" if claim.attack == CLEAN else f"under {claim.attack}"
    parts = [
        f"**{claim.source}: {claim.text}.** Published: {published_text(claim)}.",
        f"Measured {AS_PUBLISHED} ({claim.dataset}, {claim.defense}, {attack}): {said(AS_PUBLISHED)}.",
        *(f"Within {at}: {claim.rule.strongest.name} {said(str(at))}." for at in claim.strongest),
        *(f"{note}." for note in notes),
        *_distances(claim, records),
        _price(claim, records),
    ]
    if falls:
        conclusion = f"the claim is contradicted: {', '.join(falls)}"
    elif missing:
        conclusion = f"the claim is open, because attacks failed or are missing: {', '.join(missing)}"
    else:
        conclusion = "the claim is not contradicted by the attacks of this run"
    return " ".join([*parts, f"By the rule below, **{conclusion}**."])


def _distances(claim: Claim, records: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence for each norm of the budgets: the median distance at which an input is beaten; none for noise.

    It counts only inputs that every attack of the norm attacked, because an input that few attacks tried would seem
    more robust than it is.
    """
    for norm in dict.fromkeys(budget.norm for budget in claim.strongest):
        rows = _within(claim, Budget(norm=norm), records)
        common, _, _ = attacked_within(rows, rows["eps"].max())
        middle = figures.median_distance(common)
        if not np.isnan(middle):
            n = common["sample"].nunique()
            yield f"Median {norm_text(norm)} distance at which an input is beaten: {distance_text(middle)}, n = {n:,}."


def contradicted(claim: Claim, share: Estimate) -> bool:
    """Return whether the interval of the measured share lies wholly on the wrong side of the published value (RULE)."""
    value = claim.published
    assert isinstance(value, (tuple, float))
    published = wilson(*value) if isinstance(value, tuple) else Estimate(value, value, value, 0)
    # rounding may put a share of 0 or 1 just outside its own interval
    if claim.rule.better == "high":
        return max(share.high, share.value) < published.low
    return min(share.low, share.value) > published.high


def _price(claim: Claim, records: pd.DataFrame) -> str:
    """Return a sentence with the clean rejection rate."""
    clean = _rows(records, dataset=claim.dataset, defense=claim.defense, kind=CLEAN)
    if clean.empty or (clean["status"] != "ok").any():
        return "The clean rejection rate is not in this run."
    return f"Clean rejection rate: {share_text(figures.rejection(clean), False)}."


def claims_plots(records: pd.DataFrame, claims: Sequence[Claim]) -> Iterator[Plot]:
    """Yield a plot of the outcomes over ε for every cell of which a claim uses all ε, as the papers show them.

    Cells that are not in the run, failed or were skipped have no plot.
    """
    drawn = set()
    for claim in claims:
        if claim.rule.kind == "number" or not claim.rule.ladder:
            continue
        parts = (claim.dataset, claim.defense, claim.attack, str(claim.norm), "outcomes")
        rows = _cell(claim, records, claim.defense)
        if parts not in drawn and len(rows) and (rows["status"] == "ok").all():
            drawn.add(parts)
            title = f"{claim.dataset}, {claim.defense} × {claim.attack} ({claim.source})"
            yield Plot(parts, outcomes_plot(over_ladder(rows), title, str(claim.norm)), "claims")


def outcomes_plot(curve: pd.DataFrame, title: str, norm: str) -> Figure:
    """Return a plot of accuracy, rejection and error over ε with their 95 % Wilson bands.

    curve: the columns of metrics.claims.over_ladder.
    """
    figure, axes = new_figure(WIDTH, HEIGHT + 0.7)
    for i, (name, colour) in enumerate(zip(figures.OUTCOMES, (OKABE_ITO[0], OKABE_ITO[4], OKABE_ITO[1]), strict=True)):
        shares = [wilson(round(share * n), int(n)) for share, n in zip(curve[name], curve["n"], strict=True)]
        label = {"accuracy": "accepted and right", "rejection": "rejected", "error": "accepted and wrong"}[name]
        line: JsonObject = {"color": colour, "marker": MARKERS[i], "ms": 4, "lw": 1.6, "clip_on": False}
        value, low, high = 100 * np.array([share[:3] for share in shares]).T
        axes.plot(curve["eps"], value, label=label, zorder=3, **line)
        axes.fill_between(curve["eps"], low, high, color=colour, alpha=0.15, lw=0)
    axes.set(xlabel=f"ε ({norm_text(norm)})", ylabel=f"% of n = {curve['n'].iloc[0]:,} inputs", ylim=(0, 100))
    axes.set_xlim(left=0)
    titled(axes, title)
    axes.grid(alpha=0.25)
    legend_below(axes)
    return figure
