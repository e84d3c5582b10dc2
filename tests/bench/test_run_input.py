"""What `manifold-bench run` refuses, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import GOOD, bench_run, matrix_file, one_error_line

from manifold_bench.bench import COMMANDS
from manifold_bench.bench.__main__ import main as manifold_bench
from manifold_bench.bench.list import main as list_systems
from manifold_bench.bench.run import main


def test_list_names_everything(capsys):
    assert list_systems([]) == 0
    shown = capsys.readouterr().out
    for name in (
        "digits",
        "mnist5k",
        "undefended",
        "gmvae",
        "pgd",
        "art:ClassName",
        "foolbox:ClassName",
        "smoke",
        "quick",
    ):
        assert f"\n  {name}" in shown


@pytest.mark.parametrize(
    "option", [["--nonsense"], ["--n", "0"], ["--n", "many"], ["--workers", "-1"], ["--seed", "-1"]]
)
def test_an_option_that_cannot_be_is_refused(option, capsys):
    assert main(["--matrix", "smoke", *option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and option[0] in line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("nonsense", ["--nonsense", "--no\x1b[31mnsense", "\0"])
def test_every_command_refuses_arguments_in_one_line(command, nonsense, capsys):
    assert manifold_bench([command, nonsense]) == 2
    shown = capsys.readouterr()
    assert not shown.out and len(shown.err.splitlines()) == 1 and shown.err[:-1].isprintable()


def test_an_unknown_command_is_refused_in_one_line_that_names_all(capsys):
    assert manifold_bench(["rnu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(command in line for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "--matrix"),
        (["--matrix", "smok"], "did you mean 'smoke'"),
        (["--matrix", "{tmp}/absent.toml"], "no such file"),
        (["--matrix", "{tmp}"], "is no file, but a pipe, a device or a folder; give a TOML file"),
        (["--matrix", "{broken}"], "not valid TOML"),
        (["--defense", "undefnded"], "did you mean 'undefended'"),
        (["--attack", "pdg"], "did you mean 'pgd'"),
        (["--dataset", "digit"], "did you mean 'digits'"),
        (["--defense", ""], "--defense: is empty"),
        (["--attack", ""], "--attack: is empty"),
        (["--dataset", ""], "--dataset: is empty"),
        (["--defense", "no.such:Thing"], "cannot import 'no.such'"),
        (["--attack", "tiny:Nothing"], "has no 'Nothing'"),
        (["--attack", "art"], "art:ClassName"),
        (["--n", "100000"], "500 test images"),
        (["--data", "{tmp}/absent"], "is not a folder"),
        (["--data", "{broken}"], "is not a folder"),
        (["--device", "nonsense"], "--device: 'nonsense'"),
        (["--device", "cuda:99"], "--device: 'cuda:99'"),
        (["--device", "meta"], "--device: 'meta'"),
        (["--device", ""], "--device: is empty"),
        (["--out", "{broken}"], "--out"),
        (["--out", "{broken}/below"], "--out"),
        (["--matrix", "{unrestricted}", "--attack", "fgsm"], "fgsm"),
        (
            ["--attack", "unsuited"],
            "nothing would be attacked (unsuited on tiny:NearestMean, unsuited on coin: it makes",
        ),
        (["--attack", "unsuited", "--dry-run"], "it makes no sense here"),
        (["--attack", "for-coin", "--defense", "tiny:NearestMean"], "its attacks are for other data sets or defenses"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, hint, tmp_path, capsys):
    places = {
        "tmp": str(tmp_path),
        "broken": str(tmp_path / "broken.toml"),
        "unrestricted": str(tmp_path / "free.toml"),
    }
    Path(places["broken"]).write_text("datasets = [", encoding="utf-8")
    Path(places["unrestricted"]).write_text(
        'datasets = ["digits"]\ndefenses = ["tiny:NearestMean"]\n[[attacks]]\nname = "noise"\nnorm = "unrestricted"\n',
        encoding="utf-8",
    )
    given = [argument.format(**places) for argument in arguments]
    if given and "--matrix" not in given:
        confined = '[[attacks]]\nlabel = "for-coin"\nname = "noise"\neps = [0.1]\ndefenses = ["coin"]\n'
        given += ["--matrix", str(matrix_file(tmp_path, GOOD + confined))]
    if given and "--out" not in given:
        given += ["--out", str(tmp_path / "out")]
    assert main(given) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and hint in message
    assert not (tmp_path / "out").exists()


def test_bad_input_shows_no_traceback(tmp_path):
    matrix = matrix_file(tmp_path, GOOD.replace("0.3", "-0.3"))
    message = one_error_line(bench_run(matrix, tmp_path / "out"))
    assert str(matrix) in message and "eps" in message and "-0.3" in message
