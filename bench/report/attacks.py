"""Tables that compare the attacks of a run with each other."""

from __future__ import annotations

import pandas as pd

from manifold_bench.bench.metrics.optimality import mean_optimality
from manifold_bench.bench.metrics.shares import percent_interval
from manifold_bench.bench.records.schema import WORST_CASE, Row
from manifold_bench.bench.report.order import by_norm
from manifold_bench.bench.report.table import Notes, Table
from manifold_bench.bench.text import NOT_RUN, distance_text, eps_text, norm_text, percent

LEGEND = (
    "Success: of the inputs that are accepted and right when clean, the share that the attack made accepted and wrong "
    "within its largest ε, in percent with 95 % Wilson intervals. Passes: forward + backward passes through the "
    "defense for one input, over all ε and seeds. Median distance: an input that is wrong without an attack counts as "
    "0, one that was never beaten as ∞. Optimality, in percent: 100 if the attack finds for every input the smallest "
    "distance that any attack of this table found on that defense, 0 if it finds no adversarial example (Cinà et al. "
    "2025). An attack with given ε counts with the distance it reached at the smallest ε at which it beat the input. "
    "Worst-case: all attacks together. Mean: over the defenses on which optimality is defined. Attacks are sorted by "
    "success, then by optimality."
)


def attack_tables(attacks: pd.DataFrame) -> list[Table]:
    """Return a table for each data set and norm in which at least two attacks ran on the same defense.

    attacks: the rows of optimality.attack_figures.
    """
    made = []
    means = mean_optimality(attacks)
    for (dataset, norm), there in by_norm(attacks, "dataset"):
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
        title = f"{dataset}, {norm_text(norm)}: comparison of attacks"
        made.append(Table((dataset, norm, "optimality"), title, header, rows, notes, LEGEND))
    return made


def _row(one: Row, notes: Notes) -> list[str]:
    if one["status"] != "ok":
        number = notes.number(f"{one['status']}: {one['reason']}")
        return [str(one["defense"]), str(one["attack"]), f"{one['status']} {number}", *[NOT_RUN] * 4]
    return [str(one["defense"]), str(one["attack"]), *figure_texts(one)]


def figure_texts(one: Row) -> list[str]:
    """Return success, largest ε, passes, median distance and optimality of a row of attack_figures as texts."""
    return [
        percent_interval(one["success"], int(one["right"])),
        eps_text(one["eps"]),
        f"{one['forwards']:,.0f} + {one['backwards']:,.0f}",
        distance_text(one["median_distance"]),
        percent(one["optimality"]),
    ]
