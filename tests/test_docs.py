"""The examples in the documentation run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.mark.parametrize("page", ["estimators.md", "python.md"])
def test_examples_run_from_top_to_bottom(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.S | re.M)
    assert blocks
    names: dict[str, object] = {"__name__": page}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, example {number}", "exec"), names)


def test_the_example_of_the_readme_prints_what_it_shows(capsys):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```\n\n```\n(.*?)^```", page, re.S | re.M)
    assert example
    exec(compile(example[1], "README.md", "exec"), {"__name__": "readme"})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    shown = [line.split() for line in example[2].splitlines()]
    assert printed[0] == shown[0]
    robust = shown[0].index("robust")
    for mine, theirs in zip(printed[1:], shown[1:], strict=True):
        assert mine[:robust] == theirs[:robust]
        assert abs(float(mine[robust]) - float(theirs[robust])) < 7  # two of 32 inputs, for other processors


@pytest.mark.parametrize("page", ["gate.md"])
def test_commands_run_from_top_to_bottom(page, tmp_path, monkeypatch, capfd):
    """Python and TOML blocks become the files they name, lines of sh blocks are run, blocks of no language are told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("MANIFOLD_BENCH_CACHE", str(tmp_path / "cache"))
    output = ""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.S | re.M):
        if language in ("python", "toml"):
            name = re.match(r"# (\S+)\n", block)
            assert name
            Path(name[1]).write_text(block, encoding="utf-8")
        elif language == "sh":
            for line in block.splitlines():
                command, _, code = line.partition("  # exit code ")
                got, told = result(command), capfd.readouterr()
                assert got == int(code or 0), f"{line}\n{told.out}\n{told.err}"
                output += told.out
        else:
            assert block in output
    assert "PASS: 3 = (no difference)" in output


def result(command: str) -> int:
    """The exit code; what only reads records runs in this process, since most of its time goes into imports."""
    if reader := re.fullmatch(r"python -m (bench\.(?:baseline|compare)) (.*)", command):
        return int(import_module(reader[1]).main(shlex.split(reader[2])))
    return subprocess.run(command, shell=True, check=False).returncode
