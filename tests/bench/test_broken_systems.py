"""What systems that break cost a run: their own cells."""

from __future__ import annotations

import pandas as pd
import pytest
from commands import bench_run, figures, matrix_file, record_files, records

ATTACKS = ["Raises", "OutsideBall", "OutsideBox", "NanPixels", "WrongShape", "NoTensor", "InPlace", "Vandal", "Kills"]
TROUBLE = """
datasets = [{ name = "digits", n = 12 }]
defenses = ["tiny:NearestMean", "broken:NanLogits", "broken:NanWhereAttacked", "broken:TooManyOutputs",
            "broken:TooFewOutputs", "broken:Dies"]
[[attacks]]
name = "tiny:Slow"
eps = [0.1, 0.3]
""" + "".join(f'[[attacks]]\nname = "broken:{name}"\neps = [0.1, 0.3]\n' for name in ATTACKS)

RETRY = """
timeout = 15
datasets = [{ name = "digits", n = 12 }]
defenses = ["tiny:NearestMean", "broken:Hangs"]
[[attacks]]
name = "tiny:Slow"
eps = [0.1, 0.3]
[[attacks]]
name = "broken:Raises"
eps = [0.1, 0.3]
"""


@pytest.fixture(scope="module")
def trouble(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trouble")
    done = bench_run(matrix_file(folder, TROUBLE), folder / "out")
    return folder, done, figures(folder / "out")


def test_bad_systems_cost_their_own_cells_and_nothing_else(trouble):
    _, done, shown = trouble
    assert done.returncode == 1, done.stderr
    assert done.stderr == "" and "Traceback" not in done.stdout
    for cell in [("clean", 0.0), ("tiny:Slow", 0.1), ("tiny:Slow", 0.3)]:
        assert shown.loc[("tiny:NearestMean", *cell), "status"] == "ok"


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("Raises", "ArithmeticError: out of luck"),
        ("WrongShape", "returned shape (1, 1, 8, 8)"),
        ("NoTensor", "returned NoneType"),
        ("Kills", "its process died"),
        ("Vandal", "changed the defense"),
    ],
)
def test_an_attack_that_breaks_is_a_failed_cell_with_its_reason(trouble, attack, reason):
    for eps in (0.1, 0.3):
        row = trouble[2].loc[("tiny:NearestMean", f"broken:{attack}", eps)]
        assert row["status"] == "failed" and reason in row["reason"] and "\n" not in row["reason"]
        assert pd.isna(row["robust_accuracy"]) and pd.isna(row["accuracy"])


@pytest.mark.parametrize("attack", ["OutsideBall", "OutsideBox", "NanPixels", "InPlace"])
def test_outputs_that_break_the_rules_are_counted_and_are_no_success(trouble, attack):
    for eps in (0.1, 0.3):
        row = trouble[2].loc[("tiny:NearestMean", f"broken:{attack}", eps)]
        assert row["status"] == "ok" and row["valid"] == 0 and row["robust_accuracy"] == row["accuracy"] == 1
    rows = records(trouble[0] / "out")
    mine = rows[(rows["attack"] == f"broken:{attack}") & (rows["defense"] == "tiny:NearestMean")]
    assert not mine["valid"].any() and not mine["success"].any() and mine["distance"].eq(float("inf")).all()


@pytest.mark.parametrize(
    ("defense", "reason"),
    [
        ("NanLogits", "NaN"),
        ("TooManyOutputs", "TooManyOutputs.forward returned"),
        ("TooFewOutputs", "TooFewOutputs.forward returned"),
        ("Dies", "its process died"),
    ],
)
def test_a_defense_that_gives_no_answer_is_failed_in_every_cell(trouble, defense, reason):
    mine = trouble[2].loc[f"broken:{defense}"]
    assert set(mine["status"]) == {"failed"} and mine["robust_accuracy"].isna().all() and mine["rejection"].isna().all()
    assert mine["reason"].str.contains(reason, regex=False).all()


def test_a_defense_that_gives_no_answer_under_attack_is_not_robust(trouble):
    mine = trouble[2].loc["broken:NanWhereAttacked"]
    assert mine.loc[("clean", 0.0), "accuracy"] == 1
    assert mine.loc["tiny:Slow", "status"].eq("failed").all() and mine.loc["tiny:Slow", "robust_accuracy"].isna().all()


def test_the_next_run_tries_failed_cells_again_and_a_hang_costs_its_cell(trouble):
    folder = trouble[0]
    before = record_files(folder / "out")
    done = bench_run(matrix_file(folder, RETRY), folder / "out", TINY_MENDED="1")
    assert done.returncode == 1, done.stderr
    shown = figures(folder / "out")
    assert shown.loc[("tiny:NearestMean", "broken:Raises", 0.3), "status"] == "ok"
    assert set(shown.loc["broken:Hangs", "status"]) == {"failed"}
    assert "more than 15 s" in shown.loc[("broken:Hangs", "clean", 0.0), "reason"]
    after = record_files(folder / "out")
    changed = {name for name in before if after[name] != before[name]}
    assert changed and all("tiny_NearestMean--broken_Raises" in name for name in changed)
