"""Forecasts of a run: from what finished jobs took on this machine, else from a few passes through the defense."""

from __future__ import annotations

import pytest

from manifold_bench.bench.planning.plan import Options, Plan, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running import timings
from manifold_bench.bench.running.estimate import Kind
from manifold_bench.bench.running.forecast import Forecaster
from manifold_bench.bench.running.job import empty_records


@pytest.fixture
def remembered(tmp_path, monkeypatch):
    """The file of what this machine knows, empty at first."""
    path = tmp_path / "timings.jsonl"
    monkeypatch.setattr(timings, "timings_file", lambda device: path)
    return path


def planned(*defenses: str, steps: int = 10) -> Plan:
    attacks = [{"name": "pgd", "norm": "linf", "eps": [0.1], "steps": steps}]
    content = {"datasets": [{"name": "digits", "n": 8}], "defenses": list(defenses), "attacks": attacks}
    return make_plan(parse_matrix(content, "test.toml"), Options())


def test_a_defense_that_never_ran_here_is_tried_and_more_work_takes_longer(remembered, tmp_path):
    forecaster, store = Forecaster("cpu", 1), Store(tmp_path)
    short, long = (forecaster.forecast(planned("undefended", steps=steps), store) for steps in (10, 10_000))
    assert short.calibrated == ("undefended",) and 0 < short.total < long.total
    assert len(short.jobs) == 2


def test_what_a_job_took_is_what_it_will_take_and_nothing_is_tried(remembered, tmp_path):
    plan = planned("undefended")
    clean, attack = plan.jobs
    timings.remember("cpu", Kind.of(clean), 2.0, 3.0)
    timings.remember("cpu", Kind.of(attack), 40.0, 41.0)
    with remembered.open("a", encoding="utf-8") as file:
        file.write('{"of": "another version"}\n["short"]\nhalf a li')
    found = Forecaster("cpu", 1).forecast(plan, Store(tmp_path))
    assert found.calibrated == ()
    assert found.jobs == {clean.key: pytest.approx(3.0), attack.key: pytest.approx(41.0)}
    half = Forecaster("cpu", 2).forecast(plan, Store(tmp_path))
    assert half.total < found.total


def test_finished_jobs_take_no_time(remembered, tmp_path):
    plan, store = planned("undefended"), Store(tmp_path)
    clean, attack = plan.jobs
    store.write(clean, empty_records(clean, "ok", ""))
    assert set(Forecaster("cpu", 1).forecast(plan, store).jobs) == {attack.key}
