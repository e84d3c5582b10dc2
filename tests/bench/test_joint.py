"""The test of all cells together holds where attacks on one input depend on each other, and sees small losses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from handmade import a_run, cell, run, write_run
from scipy.stats import binom

from manifold_bench.bench.compare import main
from manifold_bench.bench.gate.gate import Gate
from manifold_bench.bench.gate.shown import junit_gate, markdown_gate
from manifold_bench.bench.metrics.paired import SIGNIFICANCE, sign_flip

N, CELLS = 64, 76


def records(beaten: np.ndarray) -> pd.DataFrame:
    """A run in which attack i beats the inputs of beaten[i]; beaten: bool [cells, inputs]."""
    adv = [list(row.astype(int)) for row in beaten]
    return run(*(cell(f"a{i}", labels=[0] * beaten.shape[1], adv=one) for i, one in enumerate(adv)))


def gate(before: np.ndarray, after: np.ndarray) -> Gate:
    return Gate(a_run(records(before)), a_run(records(after)), [])


def slightly_worse(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two runs of 76 cells of which 55 lose one input each and none gains any."""
    random = np.random.default_rng(seed)
    before = random.random((CELLS, N)) < 0.3
    after = before.copy()
    for i in range(55):
        after[i, random.choice(np.flatnonzero(~before[i]))] = True
    return before, after


def test_many_small_losses_fail_the_gate_although_no_cell_does(tmp_path, capsys):
    before, after = slightly_worse(0)
    found = gate(before, after)
    assert {one.sign for one in found.found} == {"~", "="} and found.cells_pass
    assert found.joint is not None and found.joint.worse and not found.passes
    assert (found.joint.cells, found.joint.lost, found.joint.gained) == (CELLS, 55, 0)
    assert found.exit_code == 3
    assert main([str(write_run(tmp_path / str(i), records(side))) for i, side in enumerate((before, after))]) == 3
    assert found.joint_line in capsys.readouterr().out
    assert found.joint_line[1:] in markdown_gate(found)
    failed = [case.name for suite in junit_gate(found) for case in suite if any(r.type == "gate" for r in case.result)]
    assert failed == ["all cells together are not worse"]


def test_the_other_way_round_all_is_well():
    before, after = slightly_worse(1)
    assert gate(after, before).exit_code == 0


def test_nothing_changed_and_nothing_compared():
    before, _ = slightly_worse(2)
    found = gate(before, before)
    assert found.joint is not None and (found.joint.p, found.joint.inputs, found.exit_code) == (1.0, 0, 0)
    failed = cell("a", labels=[0, 1], status="failed")
    found = Gate(a_run(run(failed)), a_run(run(failed)), [])
    assert found.joint is None and found.joint_line == ""


def test_one_input_lost_by_every_attack_is_one_input():
    """76 cells that all lose the same input are one draw, not 76."""
    before = np.zeros((CELLS, N), dtype=bool)
    after = before.copy()
    after[:, 0] = True
    found = gate(before, after)
    assert found.joint is not None and found.joint.p == pytest.approx(0.5) and found.exit_code == 0


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_the_level_holds_however_attacks_depend_on_each_other(shared):
    """Inputs change to the better or worse alike; a share of an input's cells changes with it, the rest alone."""
    random = np.random.default_rng(int(10 * shared))
    trials, rejected = 120, 0
    for _ in range(trials):
        of_input = random.choice([-1, 0, 0, 1], size=N)
        alone = random.choice([-1, 0, 0, 0, 0, 1], size=(CELLS, N))
        together = random.random((CELLS, N)) < shared
        sums = np.where(together, of_input, alone).sum(axis=0)
        rejected += sign_flip(sums[sums != 0]) <= SIGNIFICANCE
    assert rejected <= binom.ppf(0.9999, trials, SIGNIFICANCE)


def test_the_power_on_55_of_76_cells():
    """Of a hundred such runs, each cell of which is far from significant, the test misses none."""
    for seed in range(3, 103):
        before, after = slightly_worse(seed)
        sums = (before.astype(int) - after).sum(axis=0)
        assert sign_flip(sums[sums != 0]) < 1e-3


EXACT = [([-1], 1 / 2), ([-1, -1, -1], 1 / 8), ([-3, 1], 1 / 2), ([2, 2], 1.0), ([], 1.0)]


@pytest.mark.parametrize(("sums", "p"), EXACT)
def test_few_inputs_are_tested_exactly(sums, p):
    assert sign_flip(np.array(sums, dtype=int)) == pytest.approx(p)
