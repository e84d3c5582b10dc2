"""The shell command that computes one cell of a report again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from manifold_bench.bench.planning.folders import MATRICES
from manifold_bench.bench.records.schema import CLEAN
from manifold_bench.bench.text import without_folders
from manifold_bench.defenses.identity import JsonObject

OUT = "results/again"
"""Output folder of such a command. In the run's own folder finished cells would not be computed again."""


def command(run: JsonObject, dataset: str, defense: str, attacks: Iterable[str], norm: str) -> str | None:
    """Return the shell command that runs the cells of these attacks again, and nothing else of the matrix.

    run: content of run.json. attacks: labels of attacks; "clean" is the clean pass. Images that were made elsewhere are
    judged again by the command that judged them. Returns None where run.json does not say which matrix was run.
    """
    matrix = run.get("matrix", {})
    if "source" not in matrix:
        return None
    if run.get("command", [])[1:2] == ["judge"]:
        return run_command(run)
    parts = ["manifold-bench", "run", "--matrix", matrix_name(matrix["source"])]
    parts += ["--dataset", dataset, "--defense", _argument(matrix.get("defenses", []), defense)]
    for attack in attacks:
        parts += ["--attack", _argument(matrix.get("attacks", []), attack)]
        if attack != CLEAN and "--norm" not in parts:
            parts += ["--norm", norm]
    n = {entry["name"]: entry["n"] for entry in matrix["datasets"]}.get(dataset)
    parts += ["--n", str(n)] if n else []
    parts += ["--seed", str(run["seeds"][0])] if len(run["seeds"]) == 1 else []  # the matrix names several itself
    parts += ["--device", run["device"]] if run["device"] != "cpu" else []
    return shlex.join([*parts, "--out", OUT])


def run_command(run: JsonObject) -> str:
    """Return the shell command that made a run, or the words of a Python program. run: content of run.json."""
    words = list(run.get("command", []))
    return shlex.join(["manifold-bench", *words[1:]] if words[1:2] in (["run"], ["judge"]) else words)


def _argument(entries: list[JsonObject], label: str) -> str:
    """Return what names a system on the command line: its label, or its name if that has the folder of its file."""
    names = {one["name"] for one in entries if one["label"] == label == without_folders(one["name"])}
    alike = {one["label"] for one in entries if one["name"] in names}
    return names.pop() if len(names) == len(alike) == 1 else label


def matrix_name(source: str) -> str:
    """Return the argument of --matrix for a matrix file: its name if it is one of this package's, else its path."""
    return Path(source).stem if packaged(source) else source


def packaged(source: str) -> Path | None:
    """Return the file of a matrix that comes with this package; None for any other. source: its path in run.json."""
    path = Path(source)
    ours = path.parts[-3:-1] == MATRICES.parts[-2:] and (MATRICES / path.name).exists()
    return MATRICES / path.name if ours else None
