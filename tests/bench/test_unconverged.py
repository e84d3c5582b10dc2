"""Where attacks were still winning when their passes were spent, by hand."""

from __future__ import annotations

from handmade import cell, run

from manifold_bench.bench.metrics.unconverged import unconverged

LABELS = [0] * 50


def attacked(attack="a", late=0, early=0, eps=0.1, whole=40.0, **more):
    """The cell of an attack that beats so many inputs late (30 of 40 passes), and then so many others early (4)."""
    rows = cell(attack, (eps,), LABELS, adv=[1] * (late + early) + [0] * (50 - late - early), **more)
    passes = [0.75 * whole] * late + [0.1 * whole] * early + [whole] * (50 - late - early)
    return rows.assign(forwards=[0.6 * one for one in passes], backwards=[0.4 * one for one in passes])


def named(*cells, minimal=()):
    return unconverged(run(cell("clean", labels=LABELS), *cells), minimal)


def test_inputs_that_fall_in_the_second_half_of_the_passes_are_counted():
    (key, said), *others = named(attacked(late=3, early=10)).items()
    assert key == ("digits", "d", "linf", 0.1) and "3 of 50" in said and not others


def test_a_single_input_is_chance():
    assert not named(attacked(late=1, early=10)) and named(attacked(late=2))


def test_nothing_is_said_where_all_fall_early_or_nothing_is_left():
    assert not named(attacked(early=20)) and not named(attacked(late=40, early=10))


def test_what_another_attack_beats_early_is_not_late():
    assert not named(attacked("a", late=3), attacked("b", early=3))
    assert not named(attacked("a", late=3), attacked("b", early=2)), "one of them is left"
    assert named(attacked("a", late=3), attacked("b", late=3))


def test_only_inputs_that_every_attack_met_count():
    first = attacked("a", late=20)
    assert named(first, attacked("b", late=20))
    few = attacked("b", late=20)
    assert not named(first, few[few["sample"] < 20]), "all of them fell"
    assert "20 of 30" in named(first, few[few["sample"] < 30]).popitem()[1]


def test_what_fell_at_a_smaller_size_costs_no_passes_and_is_not_late():
    larger = attacked(late=3, eps=0.2)
    larger.loc[larger["success"], ["forwards", "backwards"]] = 0.0
    assert list(named(attacked(late=3), larger)) == [("digits", "d", "linf", 0.1)]


def test_attacks_of_few_passes_and_in_one_run_for_all_sizes_say_nothing():
    assert not named(attacked(late=3, whole=10.0))
    rows = attacked(late=3)
    assert not named(rows, minimal=set(rows["key"]))


def test_an_attack_that_answers_at_the_end_alone_says_nothing():
    rows = attacked(late=3)
    assert not named(rows.assign(forwards=20.0, backwards=20.0))
