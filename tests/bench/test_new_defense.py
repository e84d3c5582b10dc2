"""The defense of docs/new_defense.md, run as that page says."""

from __future__ import annotations

import re
from pathlib import Path

from commands import bench_run, figures

PAGE = Path(__file__).parents[2] / "docs" / "new_defense.md"

MATRIX = """
datasets = [{ name = "mnist5k", n = 16 }]
defenses = ["undefended"]
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.1]
"""


def test_the_tutorial_s_defense_stands_beside_a_baseline(tmp_path):
    code = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    assert code
    (tmp_path / "my_defense.py").write_text(code[1], encoding="utf-8")
    matrix = tmp_path / "mine.toml"
    matrix.write_text(MATRIX, encoding="utf-8")
    out = tmp_path / "out"
    first = bench_run(matrix, out)
    assert first.returncode == 0, first.stderr
    done = bench_run(matrix, out, "--defense", "my_defense:Smoothing", path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    table = figures(out)
    assert table.loc[("undefended", "fgsm", 0.1), "n"] == 16  # stored before, shown beside
    mine = table.loc[("my_defense:Smoothing", "clean", 0.0)]
    assert mine["accuracy"] > 0.5 and mine["accuracy"] + mine["error"] + mine["rejection"] == 1
