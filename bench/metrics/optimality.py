"""Compares attacks: success, passes, distances, and how near each comes to the smallest known distances.

Optimality is that of AttackBench (Cinà, Rony et al. 2025, arXiv 2404.19460). It compares curves of robust accuracy over
distance. The best known curve is that of the ensemble, which has for each input the smallest distance that any attack
found. Optimality is 1 minus the area between an attack's curve and the ensemble's, divided by the area between the
curve of an attack that finds nothing and the ensemble's.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from manifold_bench.bench.metrics.robustness import FOOLING, clean_right, inputs_of
from manifold_bench.bench.records.schema import ATTACK, WORST_CASE, Row

ATTACK_COLUMNS = (
    *("dataset", "norm", "defense", "attack", "n", "status", "eps"),  # which attack, and what of it there is
    *("right", "success", "forwards", "backwards", "median_distance", "optimality", "rank", "reason"),
    *("alone", "missed", "others"),
)

READ = (
    *("dataset", "defense", "attack", "kind", "norm", "eps", "sample", "seed", "status", "reason"),
    *("label", "clean_label", "clean_rejected", "success", "distance", "forwards", "backwards"),
)
"""Columns of the records from which these are computed; to leave out the others takes less time."""


def optimality(found: ArrayLike, best: ArrayLike, end: float) -> float:
    """Return how near an attack's distances come to the best known ones: 1 − (A − A*) / (A₀ − A*), at most 1.

    found, best: [N], the attack's distance and the smallest known one for each input; 0 for inputs that are wrong or
    rejected when clean, ∞ for those that were not beaten. A, A* and A₀ are the areas, from 0 to `end`, under the curves
    of robust accuracy over distance of the attack, of the ensemble, and of an attack without any success. Inputs that
    no attack beat add the same to all three areas, so they do not matter. NaN where A₀ = A*: nothing can be found.
    """
    found, best = np.asarray(found, dtype=float), np.asarray(best, dtype=float)
    # the area under such a step curve is the mean distance of its steps, one for each input
    area, least, most = (np.minimum(steps, end).sum() for steps in (found, best, np.where(best > 0, np.inf, 0)))
    return float(1 - (area - least) / (most - least)) if most > least else np.nan


def curve_end(best: ArrayLike, sizes: ArrayLike) -> float:
    """Return the distance up to which curves are compared: where the ensemble's curve reaches 0, as in AttackBench.

    best: [N], the ensemble's distances. sizes: the ε of its attacks. If the curve does not reach 0, or reaches it at
    one of the ε, so that the exact distance is not known, the result is one mean step between ε beyond the largest one.
    Otherwise inputs beaten at the largest ε, and all inputs of a run with a single ε, would not count.
    """
    best, sizes = np.asarray(best, dtype=float), np.unique(np.asarray(sizes, dtype=float))
    last = best.max(initial=0.0, where=np.isfinite(best))
    measured = np.isfinite(best).all() and not np.isclose(sizes, last, rtol=1e-3).any()
    beyond = 0.0 if measured or np.isinf(sizes).any() else sizes.max(initial=0.0) * (1 + 1 / max(len(sizes), 1))
    return float(max(last, beyond))


def _per_input(records: pd.DataFrame) -> pd.DataFrame:
    """Return what each attack found, indexed by attack and input.

    records: attacked rows of one data set, defense and norm, all ok. Columns, each over all seeds, target classes and
    ε: `right`, whether the clean input is accepted and right; `held`, whether no row beat it; `distance`, the smallest.
    """
    found = {"right": clean_right(records), "held": ~records["success"], "distance": records["distance"]}
    return pd.DataFrame(found).groupby([records["attack"], inputs_of(records).rename("input")]).min()


def _smallest_distances(found: pd.DataFrame) -> pd.DataFrame:
    """Return the smallest distance at which each attack beat each input: rows are inputs, columns attacks.

    found: result of _per_input. Values are as in `optimality`, and NaN where an attack did not run on an input.
    """
    right = found["right"].groupby(level="input").transform("min")
    smallest = found["distance"].where(right, 0.0).reset_index()
    return smallest.pivot_table(index="input", columns="attack", values="distance")


def attack_figures(records: pd.DataFrame) -> pd.DataFrame:
    """Return the figures of every attack on every defense, and of all attacks on it together: ATTACK_COLUMNS.

    records: per-input records of a run. `eps`: the attack's largest ε. `right`: number of inputs accepted and right
    when clean. `success`: share of these that the attack beat. `forwards`, `backwards`: passes per input, over all ε
    and seeds. `rank`: see `ranks`. `alone`: number of inputs that this attack beat and no other one. `missed`: number
    of inputs that it ran on and did not beat, though another one did. `others`: number of other attacks. An attack that
    failed or was skipped has its reason, and NaN in place of figures.
    Norm "fooling" is left out, because noise has no distance.
    """
    attacked = records.loc[(records["kind"] == ATTACK) & (records["norm"] != FOOLING), list(READ)]
    rows: list[Row] = []
    for (dataset, norm, defense), there in attacked.groupby(["dataset", "norm", "defense"]):
        where = {"dataset": dataset, "norm": norm, "defense": defense}
        bad = there[there["status"] != "ok"].drop_duplicates("attack")
        ok = there[~there["attack"].isin(bad["attack"])]
        if len(ok):
            found = _per_input(ok)
            distances = _smallest_distances(found)
            best = distances.min(axis=1).to_numpy()
            end = curve_end(best, ok["eps"])
            scores = {WORST_CASE: optimality(best, best, end)}
            for attack, column in distances.items():
                ran = column.notna().to_numpy()
                scores[str(attack)] = optimality(column[ran], best[ran], end)
            worth = _worth(ok, found)
            made = {
                name: where | {"attack": name, "optimality": scores[name]} | own
                for name, own in zip(worth.index, worth.to_dict("records"), strict=True)
            }
            rows += [made[name] for name in made if name != WORST_CASE]
        rows += [where | {"n": 0} | lost for lost in bad[["attack", "status", "reason"]].to_dict("records")]
        rows += [made[WORST_CASE]] if len(ok) else []
    table = pd.DataFrame(rows, columns=list(ATTACK_COLUMNS))
    return table.assign(rank=ranks(table, ["dataset", "norm", "defense"]))


def ranks(table: pd.DataFrame, within: list[str]) -> pd.Series:
    """Return the rank of each attack within its group of rows, 1 for the best: by success, then by optimality.

    within: columns that form the groups. Success comes first because optimality alone may favour an attack that finds
    small distances beyond the largest ε and fails within it. Equal attacks share a rank. NaN for the ensemble, and
    where success or optimality is undefined.
    """
    known = table[table["attack"] != WORST_CASE].dropna(subset=["success", "optimality"])
    places: dict[Hashable, int] = {}
    for _, rows in known.groupby(within):
        pairs = list(zip(rows["success"].round(9), rows["optimality"].round(9), strict=True))
        places |= {row: 1 + sum(other > own for other in pairs) for row, own in zip(rows.index, pairs, strict=True)}
    return pd.Series(places, index=table.index, dtype=float)


def _worth(records: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of ATTACK_COLUMNS that follow from each attack's own rows, and those of all, by attack.

    found: result of _per_input for these records.
    """
    together = found.groupby(level="input").min()
    every = pd.concat([found, pd.concat({WORST_CASE: together}, names=["attack"])])
    of_attack = every.groupby(level="attack")
    own = records.groupby("attack").agg({"forwards": "sum", "backwards": "sum", "eps": "max"})
    own.loc[WORST_CASE] = [own["forwards"].sum(), own["backwards"].sum(), own["eps"].max()]
    n = of_attack.size()
    beaten = ~found["held"] & found["right"]
    by_any = beaten.groupby(level="input").transform("sum")
    return own.assign(
        n=n,
        status="ok",
        forwards=own["forwards"] / n,
        backwards=own["backwards"] / n,
        right=of_attack["right"].sum(),
        success=(~every.loc[every["right"], "held"]).groupby(level="attack").mean(),  # NaN where no input is right
        median_distance=of_attack["distance"].median(),
        alone=(beaten & (by_any == 1)).groupby(level="attack").sum(),  # NaN for the worst case
        missed=(~beaten & found["right"] & (by_any > 0)).groupby(level="attack").sum(),
        others=of_attack.ngroups - 2,  # neither the attack itself nor all of them together
        reason="",
    )


def mean_optimality(attacks: pd.DataFrame) -> pd.DataFrame:
    """Return the mean success and optimality of each attack over defenses, for each data set and norm.

    The mean of optimality is AttackBench's global optimality; `defenses` is the number of defenses on which it is
    defined. `rank` compares only attacks with the same number of defenses. The ensemble, which is the worst case over
    all attacks, has no row. attacks: result of attack_figures.
    """
    known = attacks[attacks["attack"] != WORST_CASE].dropna(subset="optimality")
    groups = known.groupby(["dataset", "norm", "attack"])
    means = groups[["success", "optimality"]].mean().assign(defenses=groups.size()).reset_index()
    means["rank"] = ranks(means, ["dataset", "norm", "defenses"])
    order = ["dataset", "norm", "success", "optimality"]
    return means.sort_values(order, ascending=[True, True, False, False], ignore_index=True)
