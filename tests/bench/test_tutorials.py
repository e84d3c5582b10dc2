"""The systems of docs/new_defense.md and docs/new_attack.md, run as those pages say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import bench_run, figures, last_events, records

DOCS = Path(__file__).parents[2] / "docs"

MATRIX = """
datasets = [{ name = "mnist5k", n = 16 }]
defenses = ["undefended", "pgd-training"]
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.1, 0.3]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a user works: both modules, a matrix and its baseline."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("new_defense", "new_attack"):
        code = re.search(r"^```python\n(.*?)^```", (DOCS / f"{name}.md").read_text(encoding="utf-8"), re.S | re.M)
        assert code
        (folder / f"my_{name.removeprefix('new_')}.py").write_text(code[1], encoding="utf-8")
    (folder / "mine.toml").write_text(MATRIX, encoding="utf-8")
    done = bench_run("mine.toml", folder / "results" / "baselines" / "mine", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_tutorial_s_defense_is_compared_with_the_baselines(folder):
    out = folder / "results" / "mine"
    done = bench_run("mine.toml", out, "--defense", "my_defense:Smoothing", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = [event["title"] for event in last_events(out / "log.jsonl", "job finished")]
    assert sorted(ran) == [f"mnist5k / my_defense:Smoothing / {name}" for name in ("clean", "fgsm linf")]
    table = figures(out)
    assert table.loc[("undefended", "fgsm", 0.1), "n"] == 16
    mine = table.loc[("my_defense:Smoothing", "clean", 0.0)]
    assert mine["accuracy"] > 0.5 and mine["accuracy"] + mine["error"] + mine["rejection"] == 1
    page = (out / "report.md").read_text(encoding="utf-8")
    for text in (done.stdout, page):
        assert "How my_defense:Smoothing compares" in text
        assert re.search(r"mnist5k, L∞ ε = 0.3: .* % robust, rank [123] of 3; .*(pgd-training|undefended)", text)
    assert "against every other defense" in page
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["reused"][0]["jobs"] == 4


def test_the_tutorial_s_attack_is_compared_with_the_others(folder):
    out = folder / "results" / "attacked"
    done = bench_run("mine.toml", out, "--attack", "my_attack:RaySearch", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = [event["title"] for event in last_events(out / "log.jsonl", "job finished")]
    defenses = ("pgd-training", "undefended")
    assert sorted(ran) == [f"mnist5k / {name} / my_attack:RaySearch linf" for name in defenses]
    rows = records(out)
    found = rows[(rows["attack"] == "my_attack:RaySearch") & (rows["defense"] == "undefended")]
    assert found["success"].any() and found["valid"].all() and found["distance"].nunique() > 4
    assert (found.groupby("sample")["forwards"].sum() <= 11).all()
    # it steps as fgsm does, and no farther than it must
    page = (out / "report.md").read_text(encoding="utf-8")
    scores = {row[1]: float(row[-1]) for row in cells(page, "comparison of attacks") if row[0] == "undefended"}
    assert scores["my_attack:RaySearch"] > scores["fgsm"] and scores["worst-case"] == 100
    passes = r"\d+ \+ 1 forward \+ backward passes per input"
    sentence = rf"undefended: success .* % within ε = 0.3, {passes}, .*, rank 1 of 2"
    for text in (done.stdout, page):
        assert "How my_attack:RaySearch compares" in text
        assert re.search(sentence, " ".join(text.split()))  # lines of the screen are broken at 80 columns
    assert "plots/mnist5k--linf--distances.svg" in page


def cells(page: str, title: str) -> list[list[str]]:
    """The rows of the table with that title."""
    table = page[page.index(title) :].split("\n\n")[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
