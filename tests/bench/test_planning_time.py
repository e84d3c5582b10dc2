"""Code of users that never ends, or ends the process, where a run is planned: one line that names the class."""

from __future__ import annotations

import builtins
import locale
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import handed
import pytest
import torch
from commands import bench_run, figures, last_events, one_error_line
from handed import GOOD, Data, Honest, Idle
from torch.overrides import BaseTorchFunctionMode, _get_current_function_mode_stack

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning import reading
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.planning.usercode import contained, limit_time


def hangs(*_: Any) -> Any:
    """Never ends, and catches every Exception meanwhile."""
    while True:
        try:
            time.sleep(600)
        except Exception:
            continue


def leaves(*_: Any) -> Any:
    sys.exit(0)


def os_leaves(*_: Any) -> Any:
    os._exit(0)


def attack_of(**parts: Any) -> type[Any]:
    return dataclass(frozen=True, kw_only=True)(type("It", (Idle,), parts))


CASES: dict[str, tuple[str, Callable[[Any], type[Any]]]] = {
    "passes()": ("attacks", lambda end: attack_of(passes=end)),
    "unsuited()": ("attacks", lambda end: attack_of(unsuited=end)),
    "the constructor of an attack": ("attacks", lambda end: attack_of(__post_init__=end)),
    "the constructor of a defense": ("defenses", lambda end: type("It", (Honest,), {"__init__": end})),
    "the images of a data set": (
        "datasets",
        lambda end: dataclass(frozen=True)(type("It", (Data,), {"name": "theirs", "test": property(end)})),
    ),
    "the choice of images": (
        "datasets",
        lambda end: dataclass(frozen=True)(type("It", (Data,), {"name": "theirs", "chosen": end})),
    ),
}


def test_a_context_of_torch_that_a_module_leaves_open_is_closed():
    for before in (nullcontext(), torch.device("cpu")):
        with before:
            with contained("it"):
                torch.device("meta").__enter__()
                BaseTorchFunctionMode().__enter__()
            with contained("it"):
                torch.set_default_device("meta")
                torch.device("meta").__enter__()
            assert torch.ones(1).device == torch.get_default_device() == torch.device("cpu")
            assert len(_get_current_function_mode_stack()) == isinstance(before, torch.device)
    torch.set_default_device("cpu")
    torch.set_default_device(None)
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("end", [hangs, leaves, os_leaves])
@pytest.mark.parametrize("case", CASES)
def test_what_never_ends_or_ends_the_process_is_refused_by_name(monkeypatch, case, end):
    kind, make = CASES[case]
    monkeypatch.setattr(handed, "It", make(end), raising=False)
    monkeypatch.setattr(reading, "LEAST_SECONDS", 3.0)
    entry = {"name": "handed:It"} | ({"eps": [0.1]} if kind == "attacks" else {})
    with pytest.raises(InputError) as caught:
        _ = make_plan(parse_matrix(GOOD | {"timeout": 1.0, kind: [entry]}, "m.toml"), Options()).jobs
    text = str(caught.value)
    assert "It" in text and "\n" not in text
    assert ("3 s" in text) == (end is hangs)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_is_inside_names_what_never_ended():
    limit_time(0.2)
    try:
        with pytest.raises(InputError, match="inner"), contained("outer"), contained("inner"):
            hangs()
    finally:
        limit_time(0)


def test_what_a_module_changes_is_undone():
    before = signal.getsignal(signal.SIGCHLD), os.umask(0o022), builtins.open, sys.modules["json"]
    with contained("it"):
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        os.umask(0o777)
        builtins.open = None  # type: ignore[assignment]
        sys.modules["json"] = None  # type: ignore[assignment]
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
        torch.inference_mode().__enter__()
        torch.autocast("cpu").__enter__()
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
    assert (signal.getsignal(signal.SIGCHLD), os.umask(before[1]), builtins.open, sys.modules["json"]) == (
        before[0],
        0o022,
        *before[2:],
    )
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    assert torch.ones(1).device.type == "cpu"
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    answers = []
    for _ in range(2):
        with torch.autocast("cpu"):
            answers.append(layer(x))
        with torch.no_grad():
            layer.weight.add_(1.0)
    assert not torch.equal(*answers), "a cast of the first weights was kept"


def test_a_thread_of_a_program_has_no_limit():
    found: list[str] = []

    def work() -> None:
        with contained("it"):
            found.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["done"]


def test_a_process_that_is_forked_meanwhile_ends_as_it_should():
    """As those do that load a user's images."""
    with contained("it"):
        started = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
        started.start()
        started.join()
        child = os.fork()
        if not child:
            os._exit(7)
        assert os.waitpid(child, 0)[1] == 7 << 8 and started.exitcode == 0


@pytest.mark.parametrize("ends", ["exit", "os-exit", "base"])
def test_a_defense_that_ends_the_process_that_times_it_is_only_not_timed(tmp_path, ends):
    """A dry run lets defenses answer, to forecast how long the run takes."""
    name = {"exit": "EndsInForward", "os-exit": "OsExits", "base": "RaisesBase"}[ends]
    (tmp_path / "m.toml").write_text(
        f'datasets = [{{ name = "digits", n = 4 }}]\ndefenses = ["hostile:{name}", "tiny:NearestMean"]\n'
        'attacks = [{ name = "fgsm", eps = [0.1] }]\n'
    )
    done = bench_run(tmp_path / "m.toml", tmp_path / "out", "--dry-run")
    assert done.returncode == 0 and "tiny:NearestMean" in done.stdout and not done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize("place", ["__del__", "__repr__", "__reduce__"])
def test_a_system_that_ends_the_process_wherever_it_is_used_is_no_silent_success(tmp_path, place):
    code = f"import hostile, os, tiny\n\nclass It(hostile.Adds):\n    def {place}(self):\n        os._exit(0)\n"
    code += f"\nclass That(tiny.NearestMean):\n    def {place}(self):\n        os._exit(0)\n"
    (tmp_path / "ends.py").write_text(code)
    (tmp_path / "m.toml").write_text(
        'datasets = [{ name = "digits", n = 4 }]\ndefenses = ["ends:That"]\n'
        'attacks = [{ name = "ends:It", eps = [0.1] }]\n'
    )
    done = bench_run(tmp_path / "m.toml", tmp_path / "out", path=str(tmp_path))
    if place == "__repr__":
        assert "attacks[0]: It fails" in one_error_line(done) and not (tmp_path / "out").exists()
        return
    assert done.returncode == 1, done.stdout + done.stderr
    shown = figures(tmp_path / "out")
    assert set(shown["status"]) == {"failed"} and shown["reason"].str.contains(r"exit code 0|os\._exit\(0\)").all()
    failed = [event["title"] for event in last_events(tmp_path / "out" / "log.jsonl", "job failed")]
    assert failed == ["digits / ends:That / clean", "digits / ends:That / ends:It linf"]


LEAVES = """
import atexit, os, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
atexit.register(os._exit, 0)
atexit.register(time.sleep, 600)
from handed import Idle
"""


def test_threads_and_exit_handlers_of_a_module_neither_hold_the_command_nor_change_its_code(tmp_path: Path):
    (tmp_path / "leaves.py").write_text(LEAVES, encoding="utf-8")
    matrix = tmp_path / "m.toml"
    text = 'datasets = ["handed:Data"]\ndefenses = ["handed:Honest"]\nattacks = [{ name = "leaves:Idle", eps = [0.1] }'
    for more, code in (("]", 0), (', { name = "nowhere", eps = [0.1] }]', 2)):
        matrix.write_text(text + more, encoding="utf-8")
        done = bench_run(matrix, tmp_path / "out", "--dry-run", path=str(tmp_path))
        assert done.returncode == code, done.stdout + done.stderr
