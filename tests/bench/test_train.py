"""`manifold-bench train`: seeded, resumable, and what it leaves is what a run takes."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from commands import bench_run, command, figures, last_events, one_error_line, record_files
from safetensors.torch import load_file

from manifold_bench.bench import run, train
from manifold_bench.bench.records.log import Log

MATRIX = """
datasets = [{ name = "digits", n = 10 }]
defenses = ["tiny:Trained", "tiny:NearestMean"]
[[attacks]]
name = "tiny:Slow"
eps = [0.1]
"""
SHARED = """{ name = "tiny:Deployed", label = "one" }, { name = "tiny:Deployed", label = "two", bias = 1.0 },
{ name = "tiny:Deployed", label = "three", width = 3 }"""
TRAIN = ("--dataset", "digits", "--defense", "tiny:Trained")


def files(cache):
    """Every file of weights in the cache, its card, and whatever else is there."""
    return {path.name: path for path in (cache / "weights").iterdir()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with a `cache` that holds a training broken off half way and then gone on with; the two commands."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    broken = command("train", *TRAIN, cache=folder / "cache", TINY_TRAINING_STOPS_AT="0.5")
    assert broken.returncode != 0 and not list((folder / "cache" / "weights").glob("*.safetensors"))
    done = command("train", *TRAIN, cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder, broken, done


def test_it_goes_on_where_it_was_broken_off(trained):
    (log,) = (trained[0] / "cache" / "weights").glob("*.log.jsonl")
    events, _ = Log(log).read()
    first, second = (place for place, event in enumerate(events) if event["event"] == "run started")
    epochs = [
        [e["epoch"] for e in part if e["event"] == "training epoch"] for part in (events[:second], events[second:])
    ]
    assert first == 0 and epochs == [[1, 2], [3, 4]]


def test_it_leaves_weights_a_card_and_a_log_and_nothing_else(trained):
    folder, _, done = trained
    left = files(folder / "cache")
    assert sorted(path.suffix for path in left.values()) == [".json", ".jsonl", ".safetensors"]
    (log,) = (path for name, path in left.items() if name.endswith(".log.jsonl"))
    events, _ = Log(log).read()  # of both: the one broken off, and the one that went on
    epochs = [event["epoch"] for event in events if event["event"] == "training epoch"]
    assert epochs == [1, 2, 3, 4] and all(e["figures"]["loss"] > 0 for e in events if "figures" in e)
    assert [event["event"].partition(" ")[2] for event in events if event["event"].startswith("run")] == [
        "started",
        "finished",
        "started",
        "finished",
    ]
    (failed,) = (e for e in events if e["event"] == "training failed")
    assert failed["reason"].startswith("ArithmeticError: the loss went through the roof")
    assert "in fit" in next(e["lines"] for e in events if e["event"] == "training traceback")
    weights = next(path for path in left.values() if path.suffix == ".safetensors")
    (finished,) = (e for e in events if e["event"] == "training finished")
    assert finished["key"] == str(weights) and f"weights: {weights}" in done.stdout
    card = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    assert (
        card["name"] == "Trained"
        and card["source_sha256"]
        and card["data"] == "digits"
        and card["seed"] == 0
        and card["budget"] == 1
    )
    assert 0.5 < card["figures"]["validation_accuracy"] <= 1
    assert card["command"].startswith("manifold-bench train ")


def test_the_same_command_elsewhere_gives_the_same_weights_and_another_seed_others(trained, tmp_path):
    (known,) = (path for path in files(trained[0] / "cache").values() if path.suffix == ".safetensors")
    for seed, same in (("0", True), ("1", False)):
        out = tmp_path / f"{seed}.safetensors"
        assert command("train", *TRAIN, "--seed", seed, "--out", out, cache=tmp_path).returncode == 0
        weights, expected = load_file(out), load_file(known)
        assert weights.keys() == expected.keys()
        assert all(bool((weights[name] == expected[name]).all()) for name in weights) == same


def test_parameters_are_set_as_in_a_matrix_file_and_stand_in_the_card_s_command(tmp_path):
    out = tmp_path / "digits--mine.safetensors"
    given = ("--dataset", "digits", "--defense", "tiny:Deployed", "--set", "width=3", "--set", "bias=0.5")
    assert command("train", *given, "--budget", "0.25", "--out", out, cache=tmp_path).returncode == 0
    card = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["spec"]["width"] == 3 and card["spec"]["bias"] == 0.5
    words = shlex.split(card["command"])
    assert words == ["manifold-bench", "train", *given, "--seed", "0", "--budget", "0.25"]


def test_values_that_are_no_json_are_texts():
    given = ["a=1", "b=0.5", "c=true", "d=prior", 'e="1"', "f=[1, 2]", "g=x=y", 'h={"steps": 3}']
    expected = {"a": 1, "b": 0.5, "c": True, "d": "prior", "e": "1", "f": [1, 2], "g": "x=y", "h": {"steps": 3}}
    assert train.parameters(given) == expected


def test_two_labels_of_one_training_train_it_once(tmp_path):
    text = MATRIX.replace('"tiny:Trained", "tiny:NearestMean"', SHARED)
    (tmp_path / "matrix.toml").write_text(text, encoding="utf-8")
    done = bench_run(tmp_path / "matrix.toml", tmp_path / "broken", TINY_TRAINING_STOPS_AT="0")
    assert done.returncode == 1
    shown = figures(tmp_path / "broken")
    for name in ("one", "two", "three"):
        assert "training failed" in shown.loc[(name, "clean", 0.0), "reason"]
    done = bench_run(tmp_path / "matrix.toml", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    ran = last_events(tmp_path / "out" / "log.jsonl", "training finished")
    assert sorted(event["title"] for event in ran) == ["one, two on digits", "three on digits"]
    assert len([name for name in files(tmp_path / "cache") if name.endswith(".safetensors")]) == 2
    assert set(figures(tmp_path / "out")["status"]) == {"ok"}


def test_a_run_takes_what_was_trained(trained):
    folder = trained[0]
    before = {name: path.stat().st_mtime_ns for name, path in files(folder / "cache").items()}
    done = bench_run(folder / "matrix.toml", folder / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    events, _ = Log(folder / "out" / "log.jsonl").read()
    assert not [event for event in events if event["event"].startswith("training")]
    assert {name: path.stat().st_mtime_ns for name, path in files(folder / "cache").items()} == before


def test_a_run_trains_what_is_missing_once_and_says_so(trained, tmp_path):
    (known,) = (path for path in files(trained[0] / "cache").values() if path.suffix == ".safetensors")
    failed = bench_run(trained[0] / "matrix.toml", tmp_path / "out", TINY_TRAINING_STOPS_AT="0")
    assert failed.returncode == 1, failed.stderr
    shown = figures(tmp_path / "out")
    assert set(shown.loc["tiny:Trained", "status"]) == {"failed"}
    reason = shown.loc[("tiny:Trained", "clean", 0.0), "reason"]
    (trace,) = (tmp_path / "out" / "records" / "failures").glob("training--*.txt")
    assert "training failed: ArithmeticError" in reason and str(trace.relative_to(tmp_path / "out")) in reason
    assert "in fit" in trace.read_text(encoding="utf-8")
    assert set(shown.loc["tiny:NearestMean", "status"]) == {"ok"}

    done = bench_run(trained[0] / "matrix.toml", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    ran = last_events(tmp_path / "out" / "log.jsonl", "training finished")
    assert [event["title"] for event in ran] == ["tiny:Trained on digits"]
    weights = files(tmp_path / "cache")
    assert known.name in weights and weights[known.name].read_bytes() == known.read_bytes()
    assert set(figures(tmp_path / "out")["status"]) == {"ok"}
    names = {name.rsplit("--", 1)[0] for name in record_files(tmp_path / "out") if "Trained--clean" in name}
    assert len(names) == 1


@pytest.mark.parametrize(
    "damage",
    {
        "a flipped byte": lambda weights: weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f"),
        "truncated": lambda weights: weights.write_bytes(weights.read_bytes()[:50]),
        "gone": lambda weights: weights.unlink(),
        "a card of garbage": lambda weights: weights.with_suffix(".json").write_text("{", encoding="utf-8"),
    }.values(),
    ids=["a flipped byte", "truncated", "gone", "a card of garbage"],
)
def test_damaged_weights_are_named_and_nothing_is_lost(trained, tmp_path, monkeypatch, capsys, damage):
    shutil.copytree(trained[0] / "cache", tmp_path / "cache")
    monkeypatch.setenv("MANIFOLD_BENCH_CACHE", str(tmp_path / "cache"))
    (weights,) = (tmp_path / "cache" / "weights").glob("*.safetensors")
    damage(weights)
    assert run.main(["--matrix", str(trained[0] / "matrix.toml"), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and str(weights.with_suffix("")) in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--set", "width"], "--set: 'width' is not key=value"),
        (["--set", "=3"], "--set: '=3' is not key=value"),
        (["--set", "width=3", "--set", "width=4"], "--set: 'width' is set twice"),
        (["--defense", "undefended", "--set", "widht=3"], "--set.widht: 'undefended' has no such parameter; did you"),
        (["--defense", "undefended", "--set", "width=many"], '--set.width: "many" is not a whole number'),
        (["--defense", "undefended", "--set", "width=0"], "--set.width: 0 is not allowed; give a number ≥ 1"),
        (["--defense", "undefended", "--set", "name=inc"], "--set.name: 'undefended' has no such parameter"),
        (["--budget", "0"], "--budget"),
        (["--budget", "1.5"], "--budget"),
        (["--budget", "nan"], "--budget"),
        (["--out", "weights.pt"], ".safetensors"),
        (["--defense", "undefnded"], "did you mean 'undefended'"),
        (["--dataset", "digit"], "did you mean 'digits'"),
        (["--device", "nonsense"], "--device"),
        (["--data", "/nowhere/at/all"], "is not a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MANIFOLD_BENCH_CACHE", str(tmp_path / "cache"))
    assert train.main([*TRAIN, *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and hint in message
    assert not (tmp_path / "cache").exists()


def test_bad_input_shows_no_traceback(tmp_path):
    done = command("train", "--dataset", "digits", "--defense", "no.such:D", cache=tmp_path)
    assert "no.such" in one_error_line(done)
