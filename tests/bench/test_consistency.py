"""Records that contradict themselves are refused like damaged ones, and computed again by the next run."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from commands import bench_run, last_events, records
from handmade import REJECT, cell

from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import contradiction
from manifold_bench.bench.records.store import DamagedRecords, Store


def rows(norm: str = "linf", **more) -> pd.DataFrame:
    """An input that holds, one that is beaten, one that is rejected, and one whose output broke the rules."""
    return cell("a", (0.1,), (0, 1, 2, 3), adv=(0, 5, REJECT, 4), invalid=(3,), norm=norm, **more)


def changed(frame: pd.DataFrame, row: int, **values: object) -> pd.DataFrame:
    frame = frame.copy()
    for name, value in values.items():
        frame.loc[row, name] = value
    return frame


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_a_judge_writes_agrees_with_itself(norm):
    assert contradiction(rows(norm)) is None
    edge = changed(rows(norm), 1, **{norm: 0.1 * (1 + 5e-7)})
    assert contradiction(edge) is None
    assert contradiction(rows(norm, status="failed", reason="why")) is None
    assert contradiction(cell("clean", labels=(0, 1), adv=(0, 3), clean=(0, 3))) is None


@pytest.mark.parametrize(
    ("row", "values"),
    [
        (0, {"success": True}),  # right
        (1, {"success": False}),  # accepted and wrong
        (2, {"success": True}),  # rejected
        (3, {"success": True}),  # invalid
        (1, {"linf": 0.2}),
        (1, {"linf": math.nan}),
        (0, {"linf": 0.0, "l2": 0.0, "l0": 0.0, "adv_rejected": True}),
        (1, {"linf": 0.0, "l2": 0.0, "l0": 0.0}),
        (2, {"seed": 1}),  # of another job
        (3, {"attack": "b"}),
        (0, {"protocol": "single-shot"}),
        (1, {"dataset": "mnist"}),
        (1, {"distance": 0.9}),  # its success is nearer
        (1, {"distance": 0.0}),  # right when clean
        (0, {"distance": 0.05}),  # nothing succeeded
        (1, {"l2": 0.0, "l1": 0.0, "l0": 0.0}),
        (1, {"linf": 0.0}),
    ],
    ids=str,
)
def test_what_no_judge_writes_is_found(row, values):
    assert contradiction(changed(rows(), row, **values))


def test_a_distance_may_be_unknown_only_where_its_norm_is_not_the_cells():
    """Records from before the column `l1` are read with NaN there."""
    assert contradiction(rows().assign(l1=math.nan)) is None
    assert contradiction(rows("l1")) is None
    assert contradiction(changed(rows("l1"), 1, l1=math.nan))
    assert contradiction(changed(rows("l1"), 1, l1=0.2))


def test_without_a_ladder_an_input_may_fall_at_a_small_size_alone():
    both = cell("a", (0.1, 0.2), (0, 1), adv={0.1: [0, 5], 0.2: [0, 1]}).assign(distance=[math.inf] * 2 + [0.1] * 2)
    assert contradiction(both) is None
    assert contradiction(both.assign(distance=[0.15] * 2 + [0.1] * 2))


def test_several_jobs_may_differ():
    several = pd.concat([rows().assign(key="1"), rows("l2", seed=3).assign(key="2")], ignore_index=True)
    assert contradiction(several) is None
    found = contradiction(changed(several, 5, seed=4))
    assert found and found.row == 5


MATRIX = """
datasets = [{ name = "digits", n = 6 }]
defenses = ["tiny:NearestMean"]
[[attacks]]
name = "fgsm"
eps = [0.3]
"""


def test_a_record_that_contradicts_itself_is_refused_and_computed_again(tmp_path):
    (tmp_path / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    out = tmp_path / "out"
    assert bench_run(tmp_path / "matrix.toml", out).returncode == 0
    before, store = records(out), Store(out)
    (path,) = store.folder.glob("*fgsm*.parquet")
    contents = store.contents(path)
    store.save(path.name, contents._replace(rows=contents.rows.assign(success=~contents.rows["success"])))
    with pytest.raises(DamagedRecords):
        Results.load(out)
    assert bench_run(tmp_path / "matrix.toml", out).returncode == 0
    (again,) = last_events(out / "log.jsonl", "job started")
    assert path.stem.endswith(f"--{again['key'][:16]}")
    pd.testing.assert_frame_equal(records(out), before)
