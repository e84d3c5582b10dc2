"""What attacks are worth beside each other: success, passes, distances, and how near each comes to the best known.

Optimality is AttackBench's (Cinà, Rony et al. 2025, arXiv 2404.19460): the curve of robust accuracy over distance that
an attack leaves lies above that of the best known ensemble, which has the smallest distance any attack found for each
input. The area between the two, as a share of the area between the ensemble's curve and that of an attack that finds
nothing, is what the attack lacks.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from manifold_bench.bench.metrics.robustness import FOOLING, clean_right, inputs_of, median_distance
from manifold_bench.bench.records.schema import ATTACK, WORST_CASE, Row

ATTACK_COLUMNS = (
    *("dataset", "norm", "defense", "attack", "n", "status", "eps"),  # which attack, and what of it there is
    *("right", "success", "forwards", "backwards", "median_distance", "optimality", "rank", "reason"),
)


def optimality(found: ArrayLike, best: ArrayLike, end: float) -> float:
    """How near an attack's distances come to the best known ones: 1 − (A − A*) / (A₀ − A*), at most 1.

    found, best: [N], the attack's distance and the smallest known for each input: 0 where nothing has to be found (it
    is wrong or rejected when clean), ∞ where nothing was. A, A* and A₀ are the areas, from 0 to `end`, under the curves
    of robust accuracy over distance that the attack, the ensemble and an attack without any success leave. What nobody
    beat adds the same to all three and so doesn't count. NaN where A₀ = A*: there was nothing to find.
    """
    found, best = np.asarray(found, dtype=float), np.asarray(best, dtype=float)
    # the area under a curve of steps is the mean of where each input's step is
    area, least, most = (np.minimum(steps, end).sum() for steps in (found, best, np.where(best > 0, np.inf, 0)))
    return float(1 - (area - least) / (most - least)) if most > least else np.nan


def curve_end(best: ArrayLike, sizes: ArrayLike) -> float:
    """Up to which distance curves are compared: where the ensemble's reaches 0, as in AttackBench.

    best: [N], the ensemble's distances; sizes: the ε of its attacks. A curve that doesn't reach 0, or does so at one of
    the ε, where it is known only up to the next smaller one, is followed one step (the mean of the steps) beyond the
    largest ε. Otherwise what falls at the largest one would count for nothing, and at a single ε everything would.
    """
    best, sizes = np.asarray(best, dtype=float), np.unique(np.asarray(sizes, dtype=float))
    last = best.max(initial=0.0, where=np.isfinite(best))
    measured = np.isfinite(best).all() and not np.isclose(sizes, last, rtol=1e-3).any()
    beyond = 0.0 if measured or np.isinf(sizes).any() else sizes.max(initial=0.0) * (1 + 1 / max(len(sizes), 1))
    return float(max(last, beyond))


def smallest_distances(records: pd.DataFrame) -> pd.DataFrame:
    """The smallest distance at which each attack beat each input: [inputs × attacks], as `optimality` takes them.

    records: attacked rows of one data set, defense and norm, all ok. NaN where an attack was not run on an input; of
    several seeds and aims the smallest counts.
    """
    inputs = inputs_of(records).rename("input")
    right = clean_right(records).groupby(inputs).transform("min")
    distance = records["distance"].where(right, 0.0)
    smallest = distance.groupby([inputs, records["attack"]]).min().reset_index()
    return smallest.pivot_table(index="input", columns="attack", values="distance")


def attack_figures(records: pd.DataFrame) -> pd.DataFrame:
    """Every attack on every defense: the columns ATTACK_COLUMNS, the worst case of all together (the ensemble) last.

    records: of a run. `eps`: the largest; `right`: number of inputs accepted and right when clean, of which `success`
    is the share beaten; `forwards` and `backwards` per input, over the whole ladder of ε and all seeds. An attack that
    failed or was skipped has its reason and NaN. Noise (norm "fooling") is left out: it has no distance.
    """
    attacked = records[(records["kind"] == ATTACK) & (records["norm"] != FOOLING)]
    rows: list[Row] = []
    for (dataset, norm, defense), there in attacked.groupby(["dataset", "norm", "defense"]):
        where = {"dataset": dataset, "norm": norm, "defense": defense}
        bad = there[there["status"] != "ok"].drop_duplicates("attack")
        ok = there[~there["attack"].isin(bad["attack"])]
        if len(ok):
            distances = smallest_distances(ok)
            best = distances.min(axis=1)
            end = curve_end(best, ok["eps"])
            for attack, own in ok.groupby("attack"):
                found = distances[attack].dropna()
                score = optimality(found, best[found.index], end)
                rows.append(where | {"attack": attack, "optimality": score} | _worth(own))
        rows += [where | {"n": 0} | lost for lost in bad[["attack", "status", "reason"]].to_dict("records")]
        if len(ok):
            rows.append(where | {"attack": WORST_CASE, "optimality": optimality(best, best, end)} | _worth(ok))
    table = pd.DataFrame(rows, columns=list(ATTACK_COLUMNS))
    return table.assign(rank=ranks(table, ["dataset", "norm", "defense"]))


def ranks(table: pd.DataFrame, within: list[str]) -> pd.Series:
    """The place of each attack within a group of rows, 1 for the best: by success within ε first, then by optimality.

    Distances beyond the largest ε count for optimality, so that alone it would put an attack that fails within ε
    first. NaN for the ensemble, and where either is undefined. Attacks that are equal share a place.
    """
    known = table[table["attack"] != WORST_CASE].dropna(subset=["success", "optimality"])
    places: dict[Hashable, int] = {}
    for _, rows in known.groupby(within):
        pairs = list(zip(rows["success"].round(9), rows["optimality"].round(9), strict=True))
        places |= {row: 1 + sum(other > own for other in pairs) for row, own in zip(rows.index, pairs, strict=True)}
    return pd.Series(places, index=table.index, dtype=float)


def _worth(records: pd.DataFrame) -> dict[str, object]:
    """The columns that follow from an attack's own rows."""
    inputs = inputs_of(records)
    right = clean_right(records).groupby(inputs).min()
    beaten = records["success"].groupby(inputs).any()[right]
    return {
        "n": len(right),
        "status": "ok",
        "eps": records["eps"].max(),
        "right": len(beaten),
        "success": beaten.mean() if len(beaten) else np.nan,
        "forwards": records["forwards"].sum() / len(right),
        "backwards": records["backwards"].sum() / len(right),
        "median_distance": median_distance(records),
        "reason": "",
    }


def mean_optimality(attacks: pd.DataFrame) -> pd.DataFrame:
    """Per data set, norm and attack: mean over the defenses on which it is defined, and their number `defenses`.

    AttackBench's global optimality, and the mean success. attacks: of attack_figures. In the order of `ranks` among
    attacks on as many defenses; the ensemble is left out.
    """
    known = attacks[attacks["attack"] != WORST_CASE].dropna(subset="optimality")
    groups = known.groupby(["dataset", "norm", "attack"])
    means = groups[["success", "optimality"]].mean().assign(defenses=groups.size()).reset_index()
    means["rank"] = ranks(means, ["dataset", "norm", "defenses"])
    order = ["dataset", "norm", "success", "optimality"]
    return means.sort_values(order, ascending=[True, True, False, False], ignore_index=True)
