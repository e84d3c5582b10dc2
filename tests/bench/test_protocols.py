"""The four protocols of randomized defenses, against a table checked by hand and a defense with known odds."""

from __future__ import annotations

import math
from itertools import product

import pandas as pd
import pyarrow as pa
import pytest
from handmade import cell, run
from one_job import planned, ran
from randomized import RIGHT, RIGHT_UNDER_ATTACK

from manifold_bench.bench.metrics.paired import identity_differences
from manifold_bench.bench.metrics.protocols import PROTOCOLS, protocols
from manifold_bench.bench.metrics.shares import wilson
from manifold_bench.bench.metrics.summary import summary
from manifold_bench.bench.records.schema import ANSWERS, as_frame, as_stored, contradiction, typed
from manifold_bench.bench.report.protocols import protocol_tables

R = -1
"""A rejection."""

CLEAN = [(0, 0, 0, 0), (1, 5, 1, 1), (5, 2, 5, 5), (3, R, 3, R)]
"""Four answers to each of four clean inputs with the labels 0, 1, 2 and 3."""

ATTACKED = [(0, 0, 5, 5), (5, 5, 5, 1), (2, 2, 5, 5), (R, R, R, 3)]
"""The same under attack. Of the third, fewer answers are wrong than of the clean input."""


def answered(rows: pd.DataFrame, given: list[tuple[int, ...]]) -> pd.DataFrame:
    """The rows of one cell with these answers to the input of each."""
    counts = []
    for label, own in zip(rows["label"], given, strict=True):
        wrong = sum(one not in (label, R) for one in own)
        counts.append((len(own), own.count(label), wrong, own[0], max(own, key=own.count)))
    return rows.assign(**pd.DataFrame(counts, columns=list(ANSWERS), index=rows.index), protocol="worst-of-4")


def worst(given: list[tuple[int, ...]]) -> list[int]:
    """Of each input the answer that the judge records, as `handmade.cell` writes it."""
    bad = [[one for one in own if one not in (label, R)] for label, own in enumerate(given)]
    return [wrong[0] if wrong else -7 if R in own else own[0] for wrong, own in zip(bad, given, strict=True)]


def by_hand() -> pd.DataFrame:
    before, after = worst(CLEAN), worst(ATTACKED)
    return run(
        answered(cell("clean", clean=before, adv=before), CLEAN),
        answered(cell("a", clean=before, adv=after), ATTACKED),
        cell("clean", defense="deterministic"),
        cell("a", defense="deterministic"),
    )


def test_the_four_figures_are_those_counted_by_hand():
    found = protocols(by_hand())
    assert list(found[["defense", "attack"]].itertuples(index=False, name=None)) == [("d", "a"), ("d", "clean")]
    assert (found["n"] == 4).all() and (found["answers"] == 4).all()
    figures = found.set_index("attack")
    # clean: first answers 0 1 5 3; shares 4/4 3/4 1/4 2/4; all right: the first; votes 0 1 5 3 (of 3 R 3 R the first)
    assert figures.loc["clean", list(PROTOCOLS)].tolist() == [3 / 4, 2.5 / 4, 1 / 4, 3 / 4]
    # attacked: 0 holds; 5 fails; the clean answer 5 is kept; R holds, since the first clean answer is accepted.
    # Shares 2/4, 1/4, the clean 1/4, and of the last all hold, times the 2/4 of the clean answers that are accepted
    assert figures.loc["a", list(PROTOCOLS)].tolist() == [2 / 4, 1.5 / 4, 0, 2 / 4]
    assert tuple(figures.loc["a", ["mean_low", "mean_high"]]) == wilson(1.5, 4)[1:3]
    of_worst = summary(by_hand()).query("defense == 'd' and kind != 'worst-case'").set_index("attack")
    assert figures["worst"].to_dict() == of_worst["robust_accuracy"].to_dict()


def test_the_table_has_a_row_for_each_cell_of_randomized_defenses_and_failures_are_shown():
    failed = cell("b", status="failed", reason="out of memory").assign(protocol="worst-of-4")
    records = run(by_hand(), failed)
    (table,) = protocol_tables(summary(records), protocols(records), {})
    assert [row[:4] for row in table.rows] == [
        ["d", "clean", "4", "4"],
        ["d", "a, L∞ ε = 0.1", "4", "4"],
        ["d", "b, L∞ ε = 0.1", "4", "–"],
    ]
    assert table.rows[1][5].startswith("37.5 [") and table.rows[2][5].startswith("failed")
    old = records.drop(columns=list(ANSWERS))
    assert protocols(old).empty and not protocol_tables(summary(old), protocols(old), {})


def test_numbers_of_answers_that_contradict_themselves_are_found():
    records = by_hand()
    assert contradiction(records) is None
    for column, value in {"answers": 1, "answers_right": -1, "answers_wrong": 0}.items():
        forged = records.copy()
        forged.loc[1, column] = value  # the second clean input: 3 of 4 right, 1 wrong
        assert contradiction(forged), column


def test_columns_of_answers_are_stored_whole_or_not_at_all():
    records = by_hand()
    kept = [typed(own) for _, own in records.groupby("key")]
    assert sorted(len(set(ANSWERS) & set(own)) for own in kept) == [0, 0, 5, 5]
    for own in kept:
        pd.testing.assert_frame_equal(as_frame([as_stored(pa.Table.from_pandas(own))]), own.reset_index(drop=True))
    whole = next(own for own in kept if "answers" in own)
    with pytest.raises(ValueError, match="majority_answer"):
        as_stored(pa.Table.from_pandas(whole.drop(columns="majority_answer")))


N = 400


def near(found: float, share: float) -> bool:
    """Whether a share of N inputs is within four standard deviations of what is expected."""
    return abs(found - share) < 4 * (share * (1 - share) / N) ** 0.5 + 1e-9


def test_odds_that_are_known_are_found_by_each_protocol(tmp_path):
    n = 5
    attack = {"name": "randomized:Brighten", "eps": [0.1, 0.4]}
    clean, attacked = ran(tmp_path, attack, dataset="randomized:Dark", defense="randomized:Odds", n=N, draws=n)
    assert contradiction(clean) is None and contradiction(attacked) is None
    records = pd.concat([clean, attacked])
    found = protocols(records).set_index("eps")
    for eps, right in {0.0: RIGHT, 0.4: RIGHT_UNDER_ATTACK}.items():
        expected = {"single": right, "mean": right, "worst": right**n, "majority": majority(right, n)}
        for name, share in expected.items():
            assert near(found.loc[eps, name], share), (eps, name)
    cells = summary(records).query("kind != 'worst-case'").set_index("eps")
    assert found["worst"].to_dict() == cells["robust_accuracy"].to_dict()
    # worst of n beats many without an attack; these were attacked nevertheless
    by_chance = attacked[(attacked["eps"] == 0.4) & (attacked["distance"] == 0)]
    assert len(by_chance) > N / 4 and (by_chance["linf"] > 0.3).mean() > 0.7


def majority(right: float, n: int) -> float:
    """The probability that the vote of n answers is 0, if each is 0 with that probability, and else 1 or 2."""
    odds = (right, (1 - right) / 2, (1 - right) / 2)
    every = product(range(3), repeat=n)
    return sum(math.prod(odds[one] for one in given) for given in every if max(given, key=given.count) == 0)


def test_of_one_answer_all_protocols_are_the_robust_accuracy(tmp_path):
    attack = {"name": "randomized:Brighten", "eps": [0.4]}
    for ladder in (True, False):
        rows = ran(
            tmp_path / str(ladder),
            attack | {"ladder": ladder},
            dataset="randomized:Dark",
            defense="randomized:Odds",
            n=100,
            draws=1,
        )
        found = protocols(pd.concat(rows)).set_index("eps")
        of_cells = summary(pd.concat(rows)).query("kind != 'worst-case'").set_index("eps")
        for name in PROTOCOLS:
            assert found[name].to_dict() == of_cells["robust_accuracy"].to_dict(), (ladder, name)


def test_how_answers_are_counted_is_part_of_the_identity_and_hinders_no_comparison():
    where = {"dataset": "randomized:Dark", "defense": "randomized:Odds", "n": 4, "draws": 3}
    (job, *_) = planned({"name": "randomized:Brighten", "eps": [0.4]}, **where)
    earlier = {name: value for name, value in job.identity.items() if name != "answers"}
    assert earlier != job.identity and not list(identity_differences(earlier, job.identity, 0.0))
    assert not any("answers" in other.identity for other in planned({"name": "fgsm", "eps": [0.1]}))
