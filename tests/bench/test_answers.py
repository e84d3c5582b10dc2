"""What a process that ran a user's code answers is data: nothing in it runs, and garbage costs its own cells."""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import time
from multiprocessing.connection import Pipe
from pathlib import Path

import pytest
import torch
from commands import bench_run, figures, records
from forging import CHANGES, HANGS, PAYLOAD, STOPS, Payload

from manifold_bench.bench.running.engines import local, processes
from manifold_bench.bench.running.engines.answers import AnswerPipe, Ending, ending
from manifold_bench.bench.running.engines.calls import Call

FORGED = {
    "a pickle": struct.pack("!i", 5) + b"abcde\n",
    "nothing": b"\n",
    "another call's": b'{"number": 8, "result": "ok"}\n',
    "no number": b'{"result": "ok"}\n',
    "a number as a text": b'{"number": "7"}\n',
    "a failure that is no text": b'{"number": 7, "failure": 3}\n',
    "negative memory": b'{"number": 7, "memory": -1}\n',
    "a number of 6,000 digits": b'{"number": 7, "memory": ' + b"9" * 6000 + b"}\n",
    "a result of 6,000 digits": b'{"number": 7, "result": ' + b"9" * 6000 + b"}\n",
    "nested 60,000 deep": b'{"number": 7, "result": ' + b"[" * 60_000 + b"\n",
    "half a character": b'{"number": 7, "failure": "\\ud800"}\n',
    "no JSON": b"\xff\xfe\n",
}


@pytest.mark.parametrize("case", FORGED)
def test_what_is_no_answer_is_a_failure_of_its_own_call(case):
    found = ending(FORGED[case], 7)
    assert found.number == 7 and found.result is None and found.failure and "cannot be read" in found.failure
    assert "\n" not in found.failure and len(found.failure) <= 300
    assert json.loads(found.line())["number"] == 7


def test_a_failure_is_one_line_however_it_was_written():
    found = ending(Ending(7, failure="a\nb\r\n" + "c " * 10_000).line(), 7)
    assert found.failure and found.failure.startswith("a b c") and len(found.failure) <= 300


def test_an_answer_is_read_as_it_comes_and_never_waited_for():
    mine, theirs = Pipe(duplex=False)
    pipe, line = AnswerPipe(mine, 7), Ending(7, {"a": [1.5, None, "é"]}, memory=5).line()
    assert pipe.read() is None
    os.write(theirs.fileno(), line[:10])
    assert pipe.read() is None
    os.write(theirs.fileno(), line[10:] + b"more")
    assert pipe.read() == Ending(7, {"a": [1.5, None, "é"]}, memory=5)


def test_the_end_of_a_pipe_is_no_answer():
    mine, theirs = Pipe(duplex=False)
    theirs.close()
    with pytest.raises(EOFError):
        AnswerPipe(mine, 7).read()


def double(number: int) -> int:
    return 2 * number


def stops_template() -> None:
    os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(60)


def returns_tensor() -> torch.Tensor:
    return torch.zeros(1)


def returns_itself() -> list:
    result: list = []
    result.append(result)
    return result


def patches_json() -> torch.Tensor:
    def broken(*arguments: object, **options: object) -> str:
        raise RuntimeError("patched")

    json.dumps = broken
    return torch.zeros(1)


@pytest.mark.parametrize(("call", "kind"), [(returns_tensor, "Tensor"), (returns_itself, "list")])
def test_a_result_that_is_no_data_ends_with_its_reason(call, kind):
    with local.LocalEngine(1) as engine:
        (found,) = engine.run([Call("it", call, (), None)])
    assert found.result is None and found.failure and kind in found.failure and "JSON" in found.failure


def test_a_call_that_patches_what_writes_answers_leaves_no_traceback(capfd):
    with local.LocalEngine(1) as engine:
        (found,) = engine.run([Call("it", patches_json, (), None)])
    assert found.failure and "Traceback" not in "".join(capfd.readouterr())


def test_a_stopped_template_costs_the_call_that_stops_it_alone(monkeypatch):
    monkeypatch.setattr(processes, "LOOK_SECONDS", 0.5)
    with local.LocalEngine(2) as engine:
        calls = [Call("bad", stops_template, (), None), Call("tensor", returns_tensor, (), None)]
        found = {one.id: one for one in engine.run([*calls, *(Call(i, double, (i,), None) for i in range(3))])}
    assert found["bad"].failure and found["tensor"].failure
    assert [found[i].result for i in range(3)] == [0, 2, 4]


HEAD = """
timeout = 25
datasets = [{ name = "digits", n = 4 }]
[[attacks]]
name = "hostile:Adds"
eps = [0.3]
"""


def ended(folder: Path, name: str, defenses: list[str], attacks: str = "") -> Path:
    """Run those systems together with honest ones, and return the run's folder."""
    path = folder / f"{name}.toml"
    path.write_text(f"defenses = {json.dumps(['tiny:NearestMean', *defenses])}\n{HEAD}{attacks}", encoding="utf-8")
    done = bench_run(path, folder / name, **{PAYLOAD: str(folder / "payload")})
    assert done.returncode in (0, 1) and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert not (folder / "payload").exists()
    return folder / name


def attack(way: str) -> str:
    return f'[[attacks]]\nname = "forging:Forges"\nway = "{way}"\neps = [0.3]\ndefenses = ["tiny:NearestMean"]\n'


def defense(way: str) -> str:
    return f"forging:D_{way.replace('-', '_')}"


def check(out: Path, defenses: tuple[str, ...], attacks: tuple[str, ...]) -> None:
    """What ends its process costs its own cells; the honest ones are there."""
    shown = figures(out)
    for eps, name in ((0.0, "clean"), (0.3, "hostile:Adds")):
        assert shown.loc[("tiny:NearestMean", name, eps), "status"] == "ok"
    for way in defenses:
        for eps, name in ((0.0, "clean"), (0.3, "hostile:Adds")):
            row = shown.loc[(defense(way), name, eps)]
            assert row["status"] == "failed" and len(row["reason"]) > 3, way
    for way in attacks:
        row = shown.loc[("tiny:NearestMean", f"forging:Forges(way={way})", 0.3)]
        assert row["status"] == "failed" and len(row["reason"]) > 3, way


def test_a_pickle_in_place_of_an_answer_runs_nothing(tmp_path, monkeypatch):
    """The payload is written to every pipe and socket of the judge's, the attack's and a training's process."""
    monkeypatch.setenv(PAYLOAD, str(tmp_path / "here"))
    pickle.loads(pickle.dumps(Payload()))
    assert (tmp_path / "here").exists()  # whoever unpickles it would do as it says
    ways = ("pickle", "json", "patches")
    fits = ["forging:ForgesFit", "forging:PicklesFit"]
    out = ended(tmp_path, "out", [*map(defense, ways), *fits], "".join(map(attack, ways)))
    check(out, ways, ways)
    shown = figures(out)
    for name in fits:
        assert set(shown.loc[name]["status"]) == {"failed"}
    assert "wrote no weights" in shown.loc[("forging:ForgesFit", "clean", 0.0), "reason"]


@pytest.mark.slow
def test_whatever_a_process_does_costs_its_own_cells_at_most(tmp_path):
    counts = "".join(
        f'[[attacks]]\nname = "forging:Counts"\nvalue = {v}\neps = [0.3]\n' for v in ("-1.0", "nan", "inf")
    )
    ways = (*STOPS, *HANGS, *CHANGES)
    out = ended(tmp_path, "out", list(map(defense, ways)), "".join(map(attack, ways)) + counts)
    check(out, (*STOPS, *HANGS), (*STOPS, *HANGS))
    honest, found = records(ended(tmp_path, "honest", [])), records(out)
    same = found[(found["defense"] == "tiny:NearestMean") & found["attack"].isin(["clean", "hostile:Adds"])]
    columns = ["attack", "sample", "success", "adv_label", "linf", "status"]
    assert same[columns].values.tolist() == honest[columns].values.tolist()
    shown = figures(out)
    for name in ("-1.0", "NaN", "Infinity"):
        assert shown.loc[("tiny:NearestMean", f"forging:Counts(value={name})", 0.3), "status"] == "failed"
