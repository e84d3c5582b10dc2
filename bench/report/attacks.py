"""Tables that compare attacks."""

from __future__ import annotations

import pandas as pd

from manifold_bench.bench.metrics.optimality import mean_optimality
from manifold_bench.bench.metrics.shares import percent_interval
from manifold_bench.bench.records.schema import WORST_CASE, Row
from manifold_bench.bench.report.table import Notes, Table
from manifold_bench.bench.text import NOT_RUN, distance_text, eps_text, norm_text, percent

LEGEND = (
    "Success: share of the inputs accepted and right when clean that were made accepted and wrong within the attack's "
    "largest ε, in percent with 95 % Wilson intervals. Passes: forward + backward through the defense for one input, "
    "over all ε and seeds. Median distance: 0 for an input that is wrong without an attack, ∞ for one that was never "
    "beaten. Optimality, in percent: 100 for an attack that finds, for every input, the smallest distance that any "
    "attack of this table found on that defense, 0 for one that finds nothing (Cinà et al. 2025); an attack within "
    "given ε has the distance it came to at the smallest ε at which the input fell. Worst-case: all of them together. "
    "Mean: over the defenses on which it is defined. Attacks are in the order of their success, then of optimality."
)


def attack_tables(attacks: pd.DataFrame) -> list[Table]:
    """A table per data set and norm in which several attacks ran on a defense. attacks: of attack_figures."""
    made = []
    means = mean_optimality(attacks)
    for (dataset, norm), there in attacks.groupby(["dataset", "norm"]):
        ran = there[(there["status"] == "ok") & (there["attack"] != WORST_CASE)]
        if (ran.groupby("defense").size() < 2).all():
            continue
        notes = Notes()
        ordered = there.assign(last=there["rank"].isna()).sort_values(["defense", "last", "rank"], kind="stable")
        rows = [_row(one, notes) for one in ordered.to_dict("records")]
        of_norm = means[(means["dataset"] == dataset) & (means["norm"] == norm) & (means["defenses"] > 1)]
        for one in of_norm.to_dict("records"):
            mean = f"mean over {one['defenses']} defenses"
            rows.append([mean, one["attack"], *[NOT_RUN] * 4, percent(one["optimality"])])
        header = ["defense", "attack", "success", "within ε", "passes per input", "median distance", "optimality"]
        title = f"{dataset}, {norm_text(str(norm))}: what attacks are worth"
        made.append(Table((str(dataset), str(norm), "optimality"), title, header, rows, notes, LEGEND))
    return made


def _row(one: Row, notes: Notes) -> list[str]:
    if one["status"] != "ok":
        number = notes.number(f"{one['status']}: {one['reason']}")
        return [str(one["defense"]), str(one["attack"]), f"{one['status']} {number}", *[NOT_RUN] * 4]
    return [str(one["defense"]), str(one["attack"]), *figure_texts(one)]


def figure_texts(one: Row) -> list[str]:
    """Success, largest ε, passes, median distance and optimality of a row of attack_figures, as text."""
    return [
        percent_interval(one["success"], int(one["right"])),
        eps_text(one["eps"]),
        f"{one['forwards']:,.0f} + {one['backwards']:,.0f}",
        distance_text(one["median_distance"]),
        percent(one["optimality"]),
    ]
