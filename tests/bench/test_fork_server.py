"""The process that forks templates: what they inherit, how long it lives, and that it is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from commands import environment

from manifold_bench.bench.running.engines import fork_server, processes
from manifold_bench.bench.running.engines.calls import Call
from manifold_bench.bench.running.engines.local import LocalEngine

ROOT = Path(__file__).parents[2]
STATE = {"value": "as imported"}


def found() -> dict[str, object]:
    """What a call sees of the program that has started it."""
    server = psutil.Process(os.getppid()).parent()
    assert server is not None
    return {
        "server": server.pid,
        "folder": str(Path.cwd()),
        "variable": os.environ.get("MANIFOLD_BENCH_TRIAL"),
        "path": sys.path,
        "cpus": sorted(os.sched_getaffinity(0)),
        "arguments": sys.argv[:1],
        "state": STATE["value"],
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    }


def one(engine: LocalEngine) -> dict:
    (outcome,) = engine.run([Call("it", found, (), 60.0)])
    assert isinstance(outcome.result, dict), outcome.failure
    return outcome.result


def test_engines_of_a_program_share_a_server_and_see_the_program_as_it_is_now(tmp_path, monkeypatch):
    with LocalEngine(1) as engine:
        first = one(engine)
    monkeypatch.setenv("MANIFOLD_BENCH_TRIAL", "new")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "more"))
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        with LocalEngine(1) as engine:
            second = one(engine)
    finally:
        os.sched_setaffinity(0, cpus)
    assert first["cpus"] == sorted(cpus) and second["cpus"] == [min(cpus)]
    assert first["server"] == second["server"] and first["variable"] is None
    assert (
        second["variable"] == "new" and second["folder"] == str(tmp_path) and str(tmp_path / "more") in second["path"]
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_is_lost_or_stopped_is_replaced(number, monkeypatch):
    monkeypatch.setattr(processes, "LOOK_SECONDS", 0.5)
    with LocalEngine(1) as engine:
        server = one(engine)["server"]
    os.kill(server, number)
    with LocalEngine(1) as engine:
        assert one(engine)["server"] != server


def kills_template_and_server() -> None:
    template = psutil.Process(os.getppid())
    server = template.parent()
    assert server is not None
    server.kill()
    template.kill()


def test_a_call_that_kills_template_and_server_costs_itself_alone():
    """In a container, nobody may wait for a template without a parent, so that it stays a zombie."""
    with LocalEngine(1) as engine:
        calls = [Call("bad", kills_template_and_server, (), 60.0), Call("good", found, (), 60.0)]
        outcomes = {outcome.id: outcome for outcome in engine.run(calls)}
    assert outcomes["bad"].failure and outcomes["good"].result


def test_a_program_whose_servers_all_end_gets_an_error(monkeypatch):
    monkeypatch.setattr(fork_server, "_servers", {})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ChildProcessError, match="end as soon as they start"):
        LocalEngine(1)


PROGRAM = """
import json, signal, sys
sys.path[:0] = [{tests!r}, {support!r}]
from manifold_bench.bench.running.engines import fork_server
from manifold_bench.bench.running.engines.local import LocalEngine
from manifold_bench.bench.running.environment import begin_command
import test_fork_server as own
begin_command()
signal.signal(signal.SIGINT, print)  # as a command has a handler of its own
with fork_server.serving():
    own.STATE["value"] = "changed"
    with LocalEngine(1) as engine:
        seen = own.one(engine)
    print(json.dumps(seen | {{"parent": own.psutil.Process().children()[0].pid}}))
"""


def test_a_command_forks_itself_before_it_runs_anything_and_the_copy_ends_with_it(tmp_path):
    """The copy does not see what the command changes later, and has arguments and signals of a new interpreter."""
    code = PROGRAM.format(tests=str(Path(__file__).parent), support=str(ROOT / "tests" / "support"))
    done = subprocess.run(
        [sys.executable, "-c", code, "argument"],
        env=environment(tmp_path, path=str(ROOT)),
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout)
    assert seen["server"] == seen["parent"] and seen["state"] == "as imported" and seen["interrupt"]
    assert seen["arguments"] == ["-c"]
    assert not psutil.pid_exists(seen["server"])
