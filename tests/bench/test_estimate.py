"""Estimates of time, on hand-made sequences of jobs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned import job

from manifold_bench.attacks.gradient import FGSM, PGD
from manifold_bench.attacks.substitute import Substitute
from manifold_bench.bench.running.estimate import Estimator, Kind, guess, seconds_left, time_left
from manifold_bench.defenses.models import Handed

TIMES = st.lists(st.floats(0, 1e4), max_size=20)


def matrix():
    """Jobs and their true seconds: four defenses that differ in speed, an attack that stops early, one that doesn't."""
    pgd, fgsm = PGD(steps=50), FGSM()
    speed = {"fast": 2e-5, "slow": 4e-4, "slow-twin": 4e-4, "projecting": 2e-2}
    made = []
    for name, unit in speed.items():
        few = 100 if name == "projecting" else 1000
        kind = {"system": "slow" if "slow" in name else name, "steps": 200 if name == "projecting" else 0, "n": few}
        made.append((job(name, **kind), unit * few))
        made.append((job(name, pgd, "pgd", **kind), 101 * unit * few * 0.9))
        made.append((job(name, pgd, "early", passes=4000, **kind), 4000 * unit * few * 0.03))
        made.append((job(name, fgsm, "fgsm", passes=3, **kind), 3 * unit * few * 1.1))
    return made


def test_the_training_of_a_substitute_counts_whatever_the_number_of_inputs_and_the_speed_of_the_defense():
    def trained(n: int, speed: float = 1.0, **parameters: int) -> float:
        own, without = (
            job("fast", attack, "substitute", n=n) for attack in (Substitute(norm="linf", **parameters), FGSM())
        )
        estimator = Estimator()
        estimator.observe(clean := job("fast", n=1000), speed * guess(clean), 1.0)
        return estimator.seconds([own])[0] - estimator.seconds([without])[0]

    assert trained(10) > 0
    assert trained(1000) == pytest.approx(trained(10))
    assert trained(10, speed=50.0) == pytest.approx(trained(10))
    assert trained(10, epochs=20) == pytest.approx(2 * trained(10))
    assert trained(10, images=300) == pytest.approx(2 * trained(10))


def test_the_time_left_is_right_from_the_first_quarter_on():
    sequence = [pair for pair in matrix() if pair[0].attack is None] + sorted(
        (pair for pair in matrix() if pair[0].attack is not None), key=lambda pair: -guess(pair[0])
    )
    known, spent, total = Estimator(), 0.0, sum(seconds for _, seconds in sequence)
    for number, (done, seconds) in enumerate(sequence):
        known.observe(done, seconds, seconds)
        spent += seconds
        rest = [waiting for waiting, _ in sequence[number + 1 :]]
        if 0.25 * total < spent < 0.95 * total:
            assert sum(known.seconds(rest)) == pytest.approx(total - spent, rel=0.3)


def test_one_early_end_is_expected_elsewhere_and_one_clean_pass_tells_of_its_defense():
    jobs = {(made.defense.label, made.label): (made, seconds) for made, seconds in matrix()}

    def estimates(*names):
        known = Estimator()
        for name in names:
            known.observe(*jobs[name], jobs[name][1])
        return lambda *name: known.seconds([jobs[name][0]])[0] / jobs[name][1]

    clean = [(name, "clean") for name in ("fast", "slow", "slow-twin", "projecting")]
    before = estimates(*clean)
    assert before("fast", "pgd") == pytest.approx(1, rel=0.6) and before("slow-twin", "early") > 10
    after = estimates(*clean, ("slow", "early"))
    assert after("slow-twin", "early") == pytest.approx(1, rel=0.5)
    assert after("fast", "early") < before("fast", "early") / 3
    assert after("slow-twin", "fgsm") > before("slow-twin", "fgsm") / 2  # another attack, much as it was


def test_estimates_are_there_before_anything_is_measured_and_grow_with_the_work():
    few, many = Estimator().seconds([job("x", PGD(), "pgd", n=10), job("x", PGD(), "pgd", n=1000)])
    assert 0 < few == pytest.approx(many / 100)
    assert Estimator().seconds([]) == []


def test_another_model_that_a_program_hands_over_under_the_same_name_is_timed_anew():
    one, other = (Handed("Net", (), {"version": version}) for version in (1, 2))
    known = Estimator()
    known.observe(job("model", cls=one), 5.0, 6.0)
    assert known.knows(Kind.of(job("model", PGD(), "pgd", cls=one)))
    assert not known.knows(Kind.of(job("model", PGD(), "pgd", cls=other)))


def test_milliseconds_tell_little_and_a_job_s_own_costs_are_not_taken_for_its_passes():
    known = Estimator()
    for _ in range(2):
        known.observe(job("x", n=10), 0.002, 0.3)  # 0.2 ms for each answer, or so it seems
    known.observe(job("x", PGD(), "pgd"), 10.1, 10.4)  # 0.1 ms for each pass
    (other,) = known.seconds([job("x", PGD(steps=51), "pgd(steps=51)")])
    assert other == pytest.approx(10.1, rel=0.3)
    assert known.wall(0.0) == pytest.approx(0.3, rel=0.02) and known.wall(10.0) == pytest.approx(10.3, rel=0.05)


def test_a_machine_that_others_use_makes_everything_take_longer():
    known = Estimator()
    for _ in range(4):
        known.observe(job("x", PGD(), "pgd"), 10.0, 20.0)
    assert known.wall(10.0) == pytest.approx(20, rel=0.1)


def test_a_running_job_is_believed_more_the_further_it_is():
    assert seconds_left(100, 0, None) == 100 and seconds_left(100, 60, None) == 40
    assert seconds_left(100, 400, None) > 0  # longer than expected: nobody knows, but it isn't over
    assert seconds_left(100, 10, 0.5) == pytest.approx(10, rel=1)
    assert seconds_left(100, 10, 0.9) == pytest.approx(1.1, rel=0.6)
    assert seconds_left(100, 50, 0.5) == pytest.approx(50)


def test_time_left_is_that_of_the_busiest_worker():
    assert time_left([], [], 2) == 0
    assert time_left([], [3, 3, 3], 2) == 6 and time_left([], [5, 3, 2], 2) == 5
    assert time_left([2], [3, 1], 2**62) == 3  # as many as --workers takes, which is no number of elements of a list
    assert time_left([10, 1], [4, 4], 2) == 10 and time_left([10.0], [4, 4], 4) == 10


@given(TIMES, st.integers(1, 8))
def test_time_left_is_bounded_by_the_work_and_by_its_longest_piece(waiting, workers):
    left = time_left([], waiting, workers)
    whole, longest = sum(waiting), max(waiting, default=0)
    assert max(whole / workers, longest) * (1 - 1e-9) <= left <= whole / workers + longest + 1e-6
