"""One import name: `manifold_bench`. The folders of a checkout are no packages of their own but for the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import last_events, record_files

ROOT = Path(__file__).parents[1]


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["attacks", "attacks.pgd", "defenses", "defenses.base", "bench.records.store"])
def test_another_import_name_is_refused_in_one_line(name):
    done = python("-c", f"import {name}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ") and "write `import manifold_bench." in last


@pytest.mark.parametrize("command", ["run", "judge", "report", "compare", "baseline", "train", "list"])
def test_commands_start_as_modules_of_a_checkout_too(command):
    done = python("-m", f"bench.{command}", "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: manifold-bench {command}")
    assert python("-m", "manifold_bench.bench", command, "--help").stdout == done.stdout


def test_a_run_started_as_a_module_of_a_checkout_is_the_same_run(tmp_path):
    arguments = ["--matrix", "smoke", "--n", "8", "--defense", "undefended", "--attack", "fgsm", "--out", str(tmp_path)]
    assert python("-m", "bench.run", *arguments).returncode == 0
    before = record_files(tmp_path)
    assert python("-m", "manifold_bench.bench", "run", *arguments).returncode == 0
    assert len(json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["jobs"]) == 3
    assert not last_events(tmp_path / "log.jsonl", "job started") and record_files(tmp_path) == before


def test_no_command_and_an_unknown_one_are_answered_with_all_commands():
    for arguments in ([], ["rnu"]):
        done = python("-m", "manifold_bench.bench", *arguments)
        assert done.returncode == 2 and all(name in done.stderr for name in ("run", "compare", "train", *arguments))
