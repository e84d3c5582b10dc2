"""Calls in processes of this machine: what comes back, what is kept apart, and what a lost process costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from commands import environment

from manifold_bench.bench.running.engines.calls import Call
from manifold_bench.bench.running.engines.channel import Channel, Partner
from manifold_bench.bench.running.engines.local import LocalEngine, usable_cpus

COUNT = [0]


def double(number: int) -> int:
    COUNT[0] += 1
    return 2 * number


def counted(number: int) -> list[int]:
    """What this process has computed before, its threads, and torch's."""
    COUNT[0] += 1
    torch.set_default_dtype(torch.float64)
    x = torch.ones(3, requires_grad=True)
    (x * x).sum().backward()
    return [COUNT[0], torch.get_num_threads(), x.grad.dtype == torch.float64]  # type: ignore[union-attr]


def sleeps(seconds: float) -> None:
    time.sleep(seconds)


def asks(partner: Partner) -> float:
    partner.send({"scale": 3}, {"x": torch.arange(3)})
    return float(partner.receive()[1]["y"].sum())


def answers(channel: Channel) -> None:
    words, tensors = channel.receive()
    channel.send({}, {"y": tensors["x"] * words["scale"]})


class Unpicklable:
    def __reduce__(self):
        raise SystemExit(0)


class LeavesWhenSent:
    """Ends the process that sends it to another one."""

    def __reduce__(self):
        os._exit(0)


def kills_template() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_each_call_has_a_clean_process(method):
    with LocalEngine(2, method) as engine:
        calls = [Call(i, counted, (i,), None) for i in range(2)]
        calls += [Call("late", sleeps, (60.0,), 2.0), Call("pair", asks, (), None, partner=(answers, ()))]
        calls += [Call("lambda", double, (lambda: 1,), None), Call("exits", double, (Unpicklable(),), None)]
        calls += [Call("os-exits", double, (LeavesWhenSent(),), None)]
        found = {outcome.id: outcome for outcome in engine.run(calls)}
    assert all(found[i].result == [1, 1, True] for i in range(2)) and COUNT == [0]
    assert found["pair"].result == 9 and found["late"].failure == "it took more than 2 s and was stopped"
    assert found[0].memory > 2**26
    assert all("cannot be sent" in found[name].failure for name in ("lambda", "exits", "os-exits"))


def test_a_lost_template_costs_the_call_that_brings_it_down_alone():
    with LocalEngine(3) as engine:
        calls = [Call("bad", kills_template, (), None), *(Call(i, double, (i,), None) for i in range(5))]
        found = {outcome.id: outcome for outcome in engine.run(calls)}
        again = list(engine.run([Call("again", double, (4,), None)]))
    assert found.pop("bad").failure and {id: one.result for id, one in found.items()} == {i: 2 * i for i in range(5)}
    assert again[0].result == 8


def test_a_run_that_is_broken_off_leaves_nothing_running():
    with LocalEngine(2) as engine:
        run = engine.run(
            [Call(0, double, (1,), None), Call(1, sleeps, (100.0,), None), Call(2, sleeps, (100.0,), None)]
        )
        assert next(run).result == 2
        started = psutil.Process(engine._process.pid).children(recursive=True)
    assert started and not any(process.is_running() for process in started)


def test_workers_are_the_cpus_that_this_process_may_use(tmp_path):
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
    lines = "from manifold_bench.bench.running.engines.local import usable_cpus; print(usable_cpus())"
    one = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{one}]); {lines}"],
        env=environment(tmp_path, path=str(Path(__file__).parents[2])),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1"
