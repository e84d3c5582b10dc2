"""Whatever a system does to its process, it costs its own cells and no other's; and its children end with it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd
import pytest
from commands import bench_run, figures, one_error_line, records
from users import write

from manifold_bench.bench.records.log import Log

WAYS = (
    "exit",
    "os-exit",
    "unpicklable",
    "mute",
    "base",
    "interrupt",
    "generator",
    "kill",
    "term",
    "segfault",
    "abort",
    "parent",
    "recursion",
    "closed",
)
HONEST = """
datasets = [{ name = "digits", n = 8 }]
defenses = ["tiny:NearestMean"DEFENSES]
[[attacks]]
name = "hostile:Adds"
eps = [0.1, 0.7]
[[attacks]]
name = "fgsm"
eps = [0.1, 0.7]
"""
DEFENSES = ("Upset", "EndsInForward", "OsExits", "Interrupts", "KillsParent", "EndsInTraining", "ExitsInTraining")
OWN = ("tiny:NearestMean", "clean", "hostile:Adds", "fgsm")
ATTACKS = ("PatchesJudge", "ChangesSettings", "LeavesChildren")


def matrix(folder: Path, defenses=(), attacks="") -> Path:
    path = folder / "matrix.toml"
    named = "".join(f', "hostile:{name}"' for name in defenses)
    path.write_text("timeout = 60\n" + HONEST.replace("DEFENSES", named) + attacks, encoding="utf-8")
    return path


def attack(name: str, **settings: object) -> str:
    lines = "".join(f"{key} = {value!r}\n" for key, value in settings.items())
    return f'[[attacks]]\nname = "hostile:{name}"\neps = [0.1, 0.7]\ndefenses = ["tiny:NearestMean"]\n{lines}'


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """The folder of a run of the honest systems alone."""
    folder = tmp_path_factory.mktemp("honest")
    assert bench_run(matrix(folder), folder / "out").returncode == 0
    return folder / "out"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run of all that is hostile together with the honest ones: its folder and how it ended."""
    folder = tmp_path_factory.mktemp("hostile")
    attacks = "".join([attack(name) for name in ATTACKS] + [attack("Ends", way=way) for way in WAYS])
    attacks += attack("LeavesChildren", number=7)
    made = matrix(folder, DEFENSES, attacks)
    return folder, bench_run(made, folder / "out", TINY_LOG=str(folder / "notes"))


def of(rows: pd.DataFrame, defense: str, *attacks: str) -> pd.DataFrame:
    chosen = rows[(rows["defense"] == defense) & rows["attack"].isin(attacks)]
    return chosen.sort_values(["attack", "eps", "sample"], ignore_index=True)


def test_the_honest_cells_are_as_if_the_others_were_not_there(honest, hostile):
    expected, found = of(records(honest), *OWN), of(records(hostile[0] / "out"), *OWN)
    assert len(found) == 8 * 5 and set(found["status"]) == {"ok"}
    pd.testing.assert_frame_equal(found, expected)


def test_every_end_is_a_reason_of_its_own_cells(hostile):
    folder, done = hostile
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    shown = figures(folder / "out")
    for way in WAYS:
        for eps in (0.1, 0.7):
            row = shown.loc[("tiny:NearestMean", f"hostile:Ends(way={way})", eps)]
            if way == "closed":
                assert row["status"] in ("ok", "failed")
            else:
                assert row["status"] == "failed" and len(row["reason"]) > 3 and "\n" not in row["reason"], way
    for name in DEFENSES[1:]:
        mine = shown.loc[f"hostile:{name}"]
        assert set(mine["status"]) == {"failed"} and mine["reason"].str.len().gt(3).all()
    for name, code in (("os-exit", 0), ("kill", -9), ("term", -15)):
        assert f"exit code {code}" in shown.loc[("tiny:NearestMean", f"hostile:Ends(way={name})", 0.1), "reason"]


def test_an_attack_that_patches_the_judge_is_judged_by_the_true_one(hostile):
    rows = records(hostile[0] / "out")
    patched, plain = (of(rows, "tiny:NearestMean", f"hostile:{name}") for name in ("PatchesJudge", "Adds"))
    assert plain["success"].any() and patched["valid"].all()
    for column in ("success", "adv_label", "linf", "distance"):
        assert patched[column].tolist() == plain[column].tolist()


def test_settings_that_one_job_changes_are_those_of_no_other(hostile):
    rows = records(hostile[0] / "out")
    mine = of(rows, "tiny:NearestMean", "hostile:ChangesSettings")
    assert set(mine["status"]) == {"ok"} and mine["valid"].all()
    upset = rows[rows["defense"] == "hostile:Upset"]
    assert set(upset[upset["attack"] == "clean"]["status"]) == {"ok"}


def test_what_a_job_starts_ends_with_it(hostile):
    folder, _ = hostile
    pids = [int(pid) for pid in re.findall(r"child (\d+)", (folder / "notes").read_text(encoding="utf-8"))]
    assert len(pids) >= 12
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists() and b"Z (" not in stat(pid)]
    shown = figures(folder / "out")
    assert shown.loc[("tiny:NearestMean", "hostile:LeavesChildren", 0.1), "status"] == "ok"
    assert "7" in shown.loc[("tiny:NearestMean", "hostile:LeavesChildren(number=7)", 0.1), "reason"]


def stat(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return b"Z ("


IMPORTED = """
import os, sys
{code}
import hostile

class Own(hostile.Adds):
    pass
"""


@pytest.mark.parametrize("code", ["sys.exit(0)", "os._exit(0)", "raise KeyboardInterrupt", "raise BaseException('no')"])
def test_a_module_that_ends_the_process_that_plans_is_bad_input(tmp_path, code):
    (tmp_path / "ends.py").write_text(IMPORTED.format(code=code), encoding="utf-8")
    done = bench_run(matrix(tmp_path), tmp_path / "out", "--attack", "ends:Own", path=str(tmp_path))
    assert "'ends:Own'" in one_error_line(done)


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit(0)", "os._exit(0)", "raise ImportError('not here')", "import time; time.sleep(600)"]
)
def test_a_module_that_cannot_be_imported_by_jobs_costs_its_own_cells(honest, tmp_path, code):
    """It is imported where the run is planned, and nowhere else."""
    guarded = f"if not sys.argv[0].endswith('__main__.py'):\n    {code}"
    (tmp_path / "ends.py").write_text(IMPORTED.format(code=guarded), encoding="utf-8")
    made = matrix(tmp_path, attacks='[[attacks]]\nname = "ends:Own"\neps = [0.1]\n')
    made.write_text(made.read_text(encoding="utf-8").replace("timeout = 60", "timeout = 20"), encoding="utf-8")
    done = bench_run(made, tmp_path / "out", path=str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    shown = figures(tmp_path / "out")
    row = shown.loc[("tiny:NearestMean", "ends:Own", 0.1)]
    assert row["status"] == "failed" and row["reason"]
    pd.testing.assert_frame_equal(of(records(tmp_path / "out"), *OWN), of(records(honest), *OWN))


def test_a_process_that_is_killed_while_it_loads_costs_its_own_cells(honest, tmp_path):
    """The job's process for the defense, and the second one, which loads the attack."""
    code = "if not sys.argv[0].endswith('__main__.py'):\n    os.kill(os.getpid(), 9)"
    text = IMPORTED.format(code=code) + "class Mean(hostile.NearestMean):\n    pass\n"
    (tmp_path / "ends.py").write_text(text, encoding="utf-8")
    made = matrix(tmp_path, attacks='[[attacks]]\nname = "ends:Own"\neps = [0.1]\ndefenses = ["tiny:NearestMean"]\n')
    text = made.read_text(encoding="utf-8").replace('["tiny:NearestMean"]', '["tiny:NearestMean", "ends:Mean"]', 1)
    made.write_text(text, encoding="utf-8")
    done = bench_run(made, tmp_path / "out", path=str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    shown = figures(tmp_path / "out")
    cells = [shown.loc[("tiny:NearestMean", "ends:Own", 0.1)], *(row for _, row in shown.loc["ends:Mean"].iterrows())]
    assert len(cells) == 8
    for row in cells:
        assert row["status"] == "failed" and "exit code -9 (killed" in row["reason"], row
    pd.testing.assert_frame_equal(of(records(tmp_path / "out"), *OWN), of(records(honest), *OWN))


PATCHES = """
import torch
from manifold_bench.attacks import contract, threat
from manifold_bench.bench.running import judge

def none(first, second, *others):
    return torch.zeros(len(second), dtype=torch.bool)

for module in (contract, threat, judge):
    module.inside = module.succeeded = none
judge.Judge.judge = judge.verdict = judge.unperturbed = None
"""


def test_a_module_that_patches_the_judge_when_it_is_imported_changes_no_figure(honest, tmp_path):
    """Neither its own, nor those that the next command without it finds in the folder."""
    (tmp_path / "ends.py").write_text(IMPORTED.format(code=PATCHES), encoding="utf-8")
    made = matrix(tmp_path, attacks='[[attacks]]\nname = "ends:Own"\neps = [0.1, 0.7]\n')
    done = bench_run(made, tmp_path / "out", path=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows, expected = records(tmp_path / "out"), records(honest)
    pd.testing.assert_frame_equal(of(rows, *OWN), of(expected, *OWN))
    own, plain = (of(rows, "tiny:NearestMean", name) for name in ("ends:Own", "hostile:Adds"))
    assert plain["success"].any()
    for column in ("success", "valid", "adv_label", "linf", "distance"):
        assert own[column].tolist() == plain[column].tolist()

    again = bench_run(matrix(tmp_path), tmp_path / "out")
    assert again.returncode == 0, again.stdout + again.stderr
    assert Log(tmp_path / "out" / "log.jsonl").read()[0][-1]["event"] == "run finished"  # and not found finished
    pd.testing.assert_frame_equal(of(records(tmp_path / "out"), *OWN), of(expected, *OWN))
    shown, true = (figures(folder).drop(columns="seconds") for folder in (tmp_path / "out", honest))
    pd.testing.assert_frame_equal(shown, true)


def test_settings_of_a_module_reach_no_honest_cell(honest, tmp_path):
    code = "import hostile; hostile.upset()"
    (tmp_path / "ends.py").write_text(IMPORTED.format(code=code), encoding="utf-8")
    made = matrix(tmp_path, attacks='[[attacks]]\nname = "ends:Own"\neps = [0.1]\n')
    done = bench_run(made, tmp_path / "out", path=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    pd.testing.assert_frame_equal(of(records(tmp_path / "out"), *OWN), of(records(honest), *OWN))
    assert os.environ.get("TINY_SECONDS") is None


def test_records_that_are_removed_while_the_run_is_at_work_are_named(tmp_path):
    made = matrix(tmp_path, attacks=attack("Removes"))
    done = bench_run(made, tmp_path / "out", workers=1, TINY_OUT=str(tmp_path / "out"))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "--fgsm--" in done.stderr, done.stderr
    assert bench_run(made, tmp_path / "out").returncode == 0


def test_images_that_differ_from_process_to_process_fail_by_name(tmp_path):
    """A success on another image under the same number would be none."""
    made = matrix(tmp_path)
    made.write_text(made.read_text(encoding="utf-8").replace('"digits"', '"hostile:ByProcess"'), encoding="utf-8")
    done = bench_run(made, tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stdout + done.stderr
    shown = figures(tmp_path / "out")
    assert set(shown["status"]) == {"failed"} and shown["reason"].str.contains(r"other images \(\d+ of \d+\)").all()


def test_a_module_that_changes_torch_s_defaults_as_it_is_imported(tmp_path):
    """Its own cells are computed as any others; the trained weights of the project are not called damaged."""
    lines = (
        "import torch",
        "from manifold_bench.attacks.gradient import FGSM",
        "torch.set_default_dtype(torch.float64)",
    )
    write(tmp_path, {"doubles.py": "\n".join([*lines, "class Doubles(FGSM):", "    paper = None"])})
    path = tmp_path / "matrix.toml"
    text = 'datasets = [{ name = "digits", n = 8 }]\ndefenses = ["undefended"]\n'
    for name in ("fgsm", "doubles:Doubles"):
        text += f'[[attacks]]\nname = "{name}"\neps = [0.1]\n'
    path.write_text(text, encoding="utf-8")
    done = bench_run(path, tmp_path / "out", workers=1, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = figures(tmp_path / "out")["robust_accuracy"]
    assert found["undefended", "doubles:Doubles", 0.1] == found["undefended", "fgsm", 0.1]
