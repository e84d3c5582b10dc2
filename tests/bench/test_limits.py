"""Limits on single figures: what breaks a limit, what does not, and which texts are not a limit."""

import math

import pandas as pd
import pytest
from handmade import REJECT, a_run, cell, run
from hypothesis import given
from hypothesis import strategies as st

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.gate.limits import FIGURES, Check, Limit, check
from manifold_bench.bench.metrics.paired import compare
from manifold_bench.bench.records.schema import CALIBRATION, CLEAN, WORST_CASE

TEN = [0] * 10


def attacked(beaten: int, attack: str = "a", **more) -> pd.DataFrame:
    """An attack that beats the first `beaten` of ten inputs."""
    return cell(attack, labels=TEN, adv=[1] * beaten + [0] * (10 - beaten), **more)


def checks(before: pd.DataFrame, after: pd.DataFrame, *limits: str) -> dict[tuple[str, float], Check]:
    """What was checked, by attack and ε; for one limit."""
    old, new = a_run(before), a_run(after)
    made = check([Limit.parse(limit) for limit in limits], old, new, compare(old, new))
    return {(one.cell[2], one.cell[4]): one for one in made}


@pytest.mark.parametrize(
    ("limit", "before", "after", "broken"),
    [
        ("robust_accuracy:2pp", 0.86, 0.84, False),  # 0.86 − 0.84 > 0.02 in floating point
        ("robust_accuracy:2pp", 0.86, 0.83, True),
        ("robust_accuracy:2pp", 0.83, 0.86, False),
        ("robust_accuracy:0pp", 0.86, 0.86, False),
        ("robust_accuracy:0pp", 0.86, 0.859, True),
        ("robust_accuracy:5%", 0.80, 0.76, False),
        ("robust_accuracy:5%", 0.80, 0.75, True),
        ("accuracy:2x", 0.8, 0.4, False),
        ("accuracy:2x", 0.8, 0.3, True),
        ("error:1pp", 0.10, 0.12, True),
        ("error:1pp", 0.12, 0.10, False),
        ("error:150%", 0.10, 0.25, False),
        ("error:150%", 0.10, 0.26, True),
        ("error:5%", 0.0, 0.01, True),  # worse by more than any percentage of nothing
        ("passes:1.5x", 100, 150, False),
        ("passes:1.5x", 100, 151, True),
        ("median_distance:10%", 1.0, 0.89, True),
        ("median_distance:10%", math.inf, 3.0, True),
        ("median_distance:10%", math.inf, math.inf, False),
        ("median_distance:10%", 3.0, math.inf, False),
        ("seconds:1.5x", 10.0, 16.0, True),
        ("seconds:1.5x", 0.01, 0.9, False),  # within a second, timings are noise
    ],
)
def test_a_limit_by_hand(limit, before, after, broken):
    assert Limit.parse(limit).broken(before, after) is broken


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("robust_accuracy", "is not FIGURE:LIMIT; the limit is 2pp"),
        (
            "robust_acuracy:2pp",
            "unknown figure 'robust_acuracy'; did you mean 'robust_accuracy'? allowed: robust_accuracy,",
        ),
        ("accuracy:2", "'2' is not a limit; give 2pp"),
        ("accuracy:-2pp", "'-2pp' is not a limit"),
        ("accuracy:nanpp", "is not a limit"),
        ("seconds:2pp", "seconds is not a share"),
        ("median_distance:2pp", "median_distance is not a share"),
        ("seconds:0.5x", "factor ≥ 1"),
        ("accuracy:100%", "nothing can break"),
        ("error:100pp", "nothing can break"),
    ],
)
def test_a_text_that_is_not_a_limit_is_refused_in_one_line(text, expected):
    with pytest.raises(InputError) as error:
        Limit.parse(text)
    assert str(error.value).startswith("--fail-on: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_limit_reads_as_it_was_given():
    for text in ("robust_accuracy:2pp", "error:0.5%", "seconds:1.5x"):
        assert str(Limit.parse(text)) == text


UNITS = st.sampled_from(["pp", "%", "x"])
SHARES = st.floats(0, 1)


@given(st.sampled_from(sorted(FIGURES)), UNITS, st.floats(1, 99), st.floats(0, 99), SHARES, SHARES)
def test_equal_or_better_breaks_nothing_and_a_looser_limit_breaks_less(name, unit, amount, more, a, b):
    figure = FIGURES[name]
    if unit == "pp" and not figure.is_share:
        unit = "%"
    limit, looser = Limit(name, amount, unit), Limit(name, min(amount + more, 99), unit)
    better, worse = (max(a, b), min(a, b)) if figure.worse == "lower" else (min(a, b), max(a, b))
    assert not limit.broken(worse, better)
    assert not limit.broken(a, a)
    assert limit.broken(better, worse) or not looser.broken(better, worse)


def test_cells_and_their_worst_case_are_checked():
    # each attack beats three others: apart 7 of 10 stand, together 4
    clean = cell(CLEAN, labels=TEN)
    before = run(clean, attacked(3), cell("b", labels=TEN, adv=[1] * 3 + [0] * 7))
    after = run(clean, attacked(3), cell("b", labels=TEN, adv=[0] * 3 + [1] * 3 + [0] * 4))
    found = checks(before, after, "robust_accuracy:2pp")
    assert {name for name, _ in found} == {CLEAN, "a", "b", WORST_CASE}
    assert not found["a", 0.1].broken and not found["b", 0.1].broken and not found[CLEAN, 0].broken
    worst = found[WORST_CASE, 0.1]
    assert (worst.before, worst.after, worst.broken) == (0.7, pytest.approx(0.4), True)
    assert worst.note == "over a, b"
    assert worst.texts == ("70.0", "40.0")


def test_a_stronger_attack_that_only_the_new_run_has_is_no_fault_of_the_defense():
    found = checks(attacked(3), run(attacked(3), attacked(9, "stronger")), "robust_accuracy:2pp")
    assert found[WORST_CASE, 0.1].after == 0.7
    assert not any(one.broken for one in found.values())


def test_only_shared_inputs_are_checked():
    other = cell("a", labels=TEN, adv=[0] * 5 + [1] * 5, samples=range(5, 15))  # beats 10 to 14, which are new
    assert checks(attacked(0), other, "robust_accuracy:0pp")["a", 0.1].after == 1


def test_what_cannot_be_compared_is_not_checked():
    failed = attacked(0, status="failed", reason="why")
    assert not checks(attacked(0), failed, "robust_accuracy:2pp")
    assert not checks(cell(CALIBRATION, labels=TEN), cell(CALIBRATION, labels=TEN), "accuracy:2pp")


def test_rejection_has_a_limit_on_clean_inputs_alone():
    before = run(cell(CLEAN, labels=TEN), attacked(2))
    rejecting = [REJECT] * 3 + [0] * 7
    after = run(cell(CLEAN, labels=TEN, clean=rejecting), cell("a", labels=TEN, clean=rejecting, adv=[REJECT] * 10))
    (one,) = checks(before, after, "rejection:1pp").values()
    assert (one.cell[2], one.before, one.after, one.broken) == (CLEAN, 0, 0.3, True)


@pytest.mark.parametrize(
    ("figure", "before", "after"),
    [
        ("robust_accuracy", 0.8, 0.3),
        ("strict_robust_accuracy", 0.8, 0.2),
        ("accuracy", 0.8, 0.2),
        ("accuracy_without_rejection", 0.8, 0.3),
        ("error", 0.2, 0.7),
        ("passes", 15, 45),
        ("seconds", 5, 5),
        ("median_distance", math.inf, 0.1),
    ],
)
def test_each_figure_of_a_cell_by_hand(figure, before, after):
    new = cell("a", labels=TEN, adv=[1] * 7 + [REJECT] + [0] * 2, passes=(30, 15))
    one = checks(attacked(2), new, f"{figure}:1.1x")["a", 0.1]
    assert (one.before, one.after) == (before, pytest.approx(after))
    assert one.broken is (figure != "seconds")


def test_a_median_distance_counts_what_was_found_within_the_cell_s_size():
    def ladder(at_once: int) -> pd.DataFrame:
        """Six of ten are beaten at 0.2, so many of them at 0.1 already."""
        small, large = ([1] * beaten + [0] * (10 - beaten) for beaten in (at_once, 6))
        return cell("a", (0.1, 0.2), TEN, adv={0.1: small, 0.2: large})

    found = checks(ladder(1), ladder(6), "median_distance:10%")
    assert (found["a", 0.1].before, found["a", 0.1].after) == (math.inf, 0.1)
    assert (found["a", 0.2].before, found["a", 0.2].after) == (0.2, 0.1)


def test_noise_has_an_error_and_no_right_answer():
    def fooled(n: int) -> pd.DataFrame:
        return cell("a", norm="fooling", labels=[-1] * 10, clean=[REJECT] * 10, adv=[3] * n + [REJECT] * (10 - n))

    assert checks(fooled(1), fooled(5), "error:10pp")["a", math.inf].broken
    assert not checks(fooled(1), fooled(5), "robust_accuracy:10pp")
