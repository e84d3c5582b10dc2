"""The command of a cell plans that cell again."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

import pytest
import torch
from torch import nn

from manifold_bench.bench.arguments import run_parser
from manifold_bench.bench.evaluation.evaluate import matrices
from manifold_bench.bench.planning.plan import Options, make_plan, matrix_json
from manifold_bench.bench.planning.reading import read_matrix
from manifold_bench.bench.records.schema import CLEAN
from manifold_bench.bench.report.html.reproduce import command

NETS = "import torch\n\n\ndef net(x: torch.Tensor) -> torch.Tensor:\n    return x.flatten(1)[:, :10]\n"

MATRIX = """
datasets = [{ name = "digits", n = 6 }]
calibration = 5
seed = 7
defenses = ["undefended", { name = "undefended", label = "un (d, 'e')", width = 8 }, "pgd-training"]
[[attacks]]
name = "pgd"
eps = [0.1, 0.2]
[[attacks]]
name = "pgd"
label = "it's pgd (of $5, or so)"
steps = 7
eps = [0.1]
defenses = ["undefended", "un (d, 'e')"]
[[attacks]]
name = "pgd"
norm = "l2"
eps = [0.5]
[[attacks]]
name = "noise"
norm = "fooling"
"""


def planned(matrix: Any, n: int | None) -> dict[tuple[str, str, str, str], str]:
    """(data set, defense, attack, norm) → key of every job but the calibration's."""
    jobs = make_plan(matrix, Options(n=n)).jobs
    return {
        (job.dataset.name, job.defense.label, job.label, job.norm): job.key for job in jobs if job.split != "validation"
    }


def from_command(line: str) -> dict[tuple[str, str, str, str], str]:
    """What the line, given to a shell, would plan."""
    words = shlex.split(line)
    assert words[:2] == ["manifold-bench", "run"]
    given = run_parser().parse_args(words[2:])
    return planned(matrices(given)[0], given.n)


@pytest.mark.parametrize("n", [None, 4])
def test_the_command_of_a_cell_plans_that_cell_and_no_other(tmp_path, n):
    path = tmp_path / "my matrix.toml"
    path.write_text(MATRIX)
    matrix = dataclasses.replace(read_matrix(str(path)), seeds=(11,))
    stored = {"matrix": json.loads(json.dumps(matrix_json(matrix, Options(n=n)))), "seeds": [11], "device": "cpu"}
    whole = planned(matrix, n)
    assert len(whole) == 14
    for key, identity in whole.items():
        dataset, defense, attack, norm = key
        line = command(stored, dataset, defense, [attack], norm)
        clean = (dataset, defense, CLEAN, "none")
        assert from_command(line) == {clean: whole[clean], key: identity}, line
    both = command(stored, "digits", "undefended", ["pgd", "it's pgd (of $5, or so)"], "linf")
    assert {key[2:] for key in from_command(both)} == {
        (CLEAN, "none"),
        ("pgd", "linf"),
        ("it's pgd (of $5, or so)", "linf"),
    }


def test_a_file_in_a_folder_is_named_with_its_folder(tmp_path, monkeypatch):
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "mine.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    matrix = matrices(run_parser().parse_args(["--matrix", "smoke", "--defense", "nets/mine.py:net", "--n", "4"]))[0]
    stored = {"matrix": json.loads(json.dumps(matrix_json(matrix, Options(n=4)))), "seeds": [0], "device": "cpu"}
    line = command(stored, "digits", "mine.py:net", ["fgsm"], "linf")
    whole = planned(matrix, 4)
    cells = [("digits", "mine.py:net", "clean", "none"), ("digits", "mine.py:net", "fgsm", "linf")]
    assert "--defense nets/mine.py:net" in line and from_command(line) == {cell: whole[cell] for cell in cells}


def test_files_of_one_name_in_two_folders_are_two_defenses(tmp_path, monkeypatch):
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), tmp_path / folder / "net.pt")
    monkeypatch.chdir(tmp_path)
    given = run_parser().parse_args(["--matrix", "smoke", "--defense", "one/net.pt", "--defense", "other/net.pt"])
    jobs = make_plan(matrices(given)[0], Options(n=4)).jobs
    assert {job.defense.label for job in jobs} == {"net.pt", "other/net.pt"}
    assert len({job.key for job in jobs}) == len(jobs)
