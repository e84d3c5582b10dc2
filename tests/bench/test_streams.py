"""Whatever standard output is, a command ends as it would."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commands import environment


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
