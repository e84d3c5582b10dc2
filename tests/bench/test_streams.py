"""Whatever standard output is, a command ends as it would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment

BASELINE = Path(__file__).parents[2] / "results" / "baselines" / "smoke"


@pytest.mark.parametrize(("arguments", "code"), [(["list"], 0), (["run", "--matrix", "no"], 2)])
@pytest.mark.parametrize("closing", ["", ">&-", "2>&-", ">&- 2>&-", ">/dev/full"])
def test_standard_streams_that_are_closed_full_or_of_few_characters(tmp_path, arguments, code, closing):
    if closing == ">/dev/full" and code == 0:
        code = 1  # output that cannot be written is an error
    words = " ".join([sys.executable, "-m", "manifold_bench.bench", *arguments])
    done = subprocess.run(
        ["sh", "-c", f"{words} {closing}"],
        env=environment(tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize("words", [["compare", BASELINE, BASELINE], ["report", "run"], ["list"]])
def test_a_reader_that_is_gone_leaves_the_exit_code_as_it_is(tmp_path, words):
    shutil.copytree(BASELINE, tmp_path / "run")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "manifold_bench.bench", *map(str, words)],
            env=environment(tmp_path),
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 0 and not done.stderr
