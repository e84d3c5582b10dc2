"""An attack that stopped trying never looks like robustness: what is recorded, counted, credited and marked."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from closed_form import distances
from commands import bench_run, figures, records
from handmade import REJECT, cell, run
from one_job import ran

from manifold_bench.attacks.contract import verdict_of
from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.threat import flat_norm
from manifold_bench.bench.metrics.effort import EFFORT_COLUMNS, effort_note
from manifold_bench.bench.metrics.summary import summary
from manifold_bench.bench.records.log import Log
from manifold_bench.bench.running.attacking import Attacking, Found

ITERATIVE = [
    {"name": "pgd", "eps": [0.1, 0.2], "steps": 5},
    {"name": "mim", "eps": [0.1, 0.2]},
    {"name": "apgd", "eps": [0.1, 0.2], "steps": 5},
    {"name": "fab", "eps": [0.1, 0.2], "steps": 5},
    {"name": "art:ProjectedGradientDescentPyTorch", "eps": [0.1, 0.2], "max_iter": 5},
    {"name": "foolbox:LinfPGD", "eps": [0.1, 0.2], "steps": 5},
]


def rows_of(folder: Path, attack: dict[str, object], defense: str) -> pd.DataFrame:
    """The stored rows of an attack on images whose distances are known, run as a job; by ε and sample."""
    rows = ran(folder, attack, defense=defense)[-1]
    assert (rows["status"] == "ok").all(), rows["reason"].iloc[0]
    return rows


def shares(cells: pd.DataFrame) -> dict[str, float]:
    row = summary(cells).query("attack == 'a'").iloc[-1]
    return {name: row[name] for name in EFFORT_COLUMNS}


def test_the_shares_by_hand():
    """Of ten inputs one is wrong when clean and one falls; the others stand, four of them for no good reason."""
    labels = list(range(10))
    rows = cell(labels=labels, clean=[1, *labels[1:]], adv=[1, 0, *labels[2:]])
    rows["blind"] = [1, 1, 0.51, 0.5, 0, 0, math.nan, 0, 0, 1]
    rows["moved"] = [False, True, True, True, False, True, True, True, True, True]
    rows["improved"] = [False, False, True, True, True, False, True, True, True, False]
    found = shares(run(cell("clean", labels=labels, clean=[1, *labels[1:]]), rows))
    expected = {"attacked": 9, "given_up": 4 / 9, "blind": 2 / 9, "unmoved": 1 / 9, "stalled": 2 / 9}
    assert found == pytest.approx(expected | {"unqueried": 0, "masked": 0})


def test_a_worst_case_is_given_up_where_every_attack_by_gradients_gave_up():
    labels = list(range(4))
    one, other = cell("a", labels=labels), cell("b", labels=labels, adv=[0, 1, 2, 0])
    one["blind"], other["blind"] = [1, 1, 0, 1], [1, 0, 1, 1]
    noise = cell("noise", labels=labels)
    figured = summary(run(cell("clean", labels=labels), one, other, noise)).set_index("attack")["given_up"]
    assert figured["worst-case"] == pytest.approx(1 / 4), "only the first: the last one fell"
    assert figured["a"] == pytest.approx(3 / 4) and figured["noise"] == 0


def test_an_attack_that_asks_once_does_not_lift_the_mark_of_one_that_stopped_trying():
    """Nobody knows of a single query whether a second one would have come nearer."""
    labels = list(range(4))
    iterative, single = cell("a", labels=labels), cell("b", labels=labels, passes=(1.0, 1.0))
    iterative["improved"], iterative["blind"], single["blind"] = [False, False, True, True], 0.0, 0.0
    figured = summary(run(cell("clean", labels=labels), iterative, single)).set_index("attack")["given_up"]
    assert figured["worst-case"] == pytest.approx(1 / 2) and figured["b"] == 0
    alone = summary(run(cell("clean", labels=labels), single, single.assign(attack="c"))).set_index("attack")
    assert alone["given_up"]["worst-case"] == 0


def test_a_minimal_attack_counts_whose_passes_are_in_the_rows_of_the_smallest_size():
    labels = list(range(4))
    stopped, minimal = (cell(name, (0.1, 0.2), labels=labels).assign(blind=0.0) for name in "ab")
    stopped["improved"] = False
    minimal["forwards"] = minimal["forwards"].where(minimal["eps"] == 0.1, 0.0)
    figured = summary(run(cell("clean", labels=labels), stopped, minimal))
    worst = figured[(figured["attack"] == "worst-case") & (figured["eps"] > 0)]
    assert (worst["given_up"] == 0).all() and len(worst) == 2


def worst_case(*attacks: pd.DataFrame) -> pd.Series:
    figured = summary(run(cell("clean", labels=attacks[0]["label"].tolist()), *attacks))
    return figured[figured["attack"] == "worst-case"].iloc[-1]


def test_attacks_that_asked_nothing_and_beat_nothing_leave_a_mark():
    labels = list(range(4))
    silent, one = cell("a", labels=labels, passes=(0.0, 0.0)), cell("b", labels=labels, passes=(0.0, 0.0))
    for attacks in ([silent], [silent, one]):
        row = worst_case(*attacks)
        assert (row["unqueried"], row["given_up"], row["attacked"]) == (1, 1, 4) and "queried" in effort_note(row)
    lucky = cell("b", labels=labels, adv=[1, 1, 2, 3], passes=(0.0, 0.0))
    asking = cell("b", labels=labels, passes=(1.0, 0.0))
    for other in (lucky, asking):
        row = worst_case(silent, other)
        assert not row["unqueried"] > 0 and not effort_note(row)
    single = summary(run(cell("clean", labels=labels), silent)).set_index("attack").loc["a"]
    assert single["unqueried"] == 0, "one draw of noise asks nothing, and is a fair control"


def test_an_attack_that_asked_in_one_batch_or_at_one_size_has_asked():
    """A substitute is trained once, and its passes are those of the first batch at the first size."""
    rows = cell("a", (0.1, 0.2), labels=list(range(4)), passes=(0.0, 0.0))
    rows.loc[(rows["eps"] == 0.1) & (rows["sample"] == 0), "forwards"] = 0.25
    assert worst_case(rows)["unqueried"] == 0


def test_what_another_attack_beat_at_a_smaller_size_is_not_given_up():
    labels = list(range(4))
    one, other = (
        cell("a", (0.1,), labels=labels, adv=[1, 1, 2, 3]),
        cell("b", (0.1, 0.2), labels=labels).assign(blind=1),
    )
    row = worst_case(one, other)
    assert (row["robust_accuracy"], row["given_up"], row["masked"]) == (0.75, 0.75, 0)


def test_noise_images_of_which_none_is_accepted_have_no_mark():
    noise = cell("a", labels=[-1] * 4, clean=[0] * 4, adv=[REJECT] * 4, norm="fooling", passes=(0.0, 0.0))
    figured = summary(run(cell("clean"), noise))
    assert not (figured["unqueried"] > 0).any()


def test_an_attack_without_any_gradient_is_not_outdone_by_one_that_came_nearer_and_beat_nothing():
    labels = [0] * 200

    def attacks(share: float, fallen: int) -> pd.Series:
        """The worst case of an attack that is blind on that share, and of one that beats so many inputs."""
        blind, other = cell("a", labels=labels), cell("b", labels=labels, adv=[1] * fallen + [0] * (200 - fallen))
        blind["blind"], other["blind"] = [1.0] * round(200 * share) + [0.0] * round(200 * (1 - share)), 0.0
        return worst_case(blind, other)

    row = attacks(0.95, 2)
    assert row["given_up"] == 0 and row["masked"] == pytest.approx(188 / 200)
    assert "188 of 200" in effort_note(row) and "gradient" in effort_note(row)
    for weaker in (attacks(0.9, 2), attacks(0.95, 3)):
        assert weaker["masked"] == 0 and not effort_note(weaker)


def test_one_in_a_hundred_is_no_mark():
    assert not effort_note({"attacked": 100, "given_up": 0.01, "blind": 0.01, "unmoved": 0.0, "stalled": 0.0})
    note = effort_note({"attacked": 198, "given_up": 2 / 198, "blind": 2 / 198, "unmoved": 0.0, "stalled": 0.0})
    assert "2 of 198 attacked inputs" in note and "gradient" in note, "shares alone would not show that it is above 1 %"
    assert not effort_note(dict.fromkeys(EFFORT_COLUMNS, math.nan)) and not effort_note({})


@pytest.mark.parametrize("attack", ITERATIVE, ids=lambda attack: attack["name"])
@pytest.mark.parametrize("defense", ["closed_form:Flat", "closed_form:Overflowing"])
def test_gradients_that_are_zero_or_not_finite_are_recorded(tmp_path, attack, defense):
    rows = rows_of(tmp_path, attack, defense)
    attacked = rows[rows["distance"] > 0]
    with_gradients = attacked[attacked["blind"].notna()]
    assert len(with_gradients) and (with_gradients["blind"] == 1).all()
    unbeaten = with_gradients[~with_gradients["success"]]
    assert len(unbeaten) and effort_note(summary(rows.assign(attack="a", key="k")).iloc[0])


@pytest.mark.parametrize("attack", ITERATIVE, ids=lambda attack: attack["name"])
def test_an_honest_attack_has_no_mark(tmp_path, attack):
    rows = rows_of(tmp_path, attack, "closed_form:Linear")
    attacked = rows[(rows["distance"] > 0) & rows["blind"].notna()]
    assert len(attacked) and (attacked["blind"] == 0).all() and attacked["moved"].all() and attacked["improved"].all()


def test_the_best_point_met_on_any_query_is_credited(tmp_path):
    """The way beyond the boundary was queried at 1.05 of its distance, and nothing was returned."""
    rows = rows_of(tmp_path, {"name": "closed_form:Wanders", "norm": "l2", "eps": [0.05, 2.0]}, "closed_form:Linear")
    last = rows[rows["eps"] == 2.0].sort_values("sample")
    assert last["success"].all() and np.allclose(last["distance"], 1.05 * distances("l2"), atol=1e-5)
    assert (last["unreturned"] == (last["distance"] > 0)).all()
    first = rows[rows["eps"] == 0.05].sort_values("sample")
    assert (first["success"] == (first["distance"] <= 0.05 * (1 + 1e-5) + 1e-5)).all()


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Of each sample that was attacked, the L2 size of the perturbation that the attack itself returned."""
    sizes: dict[int, float] = {}
    attack = Attacking.attack

    def watched(attacking: Attacking, rows: torch.Tensor, eps: float) -> Found:
        found, inputs = attack(attacking, rows, eps), attacking.inputs[rows]
        size = flat_norm((found.outputs - inputs.x).double(), "l2")
        indices = attacking.job.indices
        sizes.update(zip((indices[number] for number in inputs.number.tolist()), size.tolist(), strict=True))
        return found

    monkeypatch.setattr(Attacking, "attack", watched)
    return sizes


@pytest.mark.parametrize(
    ("attack", "nearer"),
    [
        ({"name": "art:DeepFool", "eps": [2.0], "epsilon": 1.0}, 0.25),
        ({"name": "art:HopSkipJump", "eps": [2.0], "max_iter": 2, "init_eval": 20}, 0.5),
        ({"name": "art:ProjectedGradientDescentPyTorch", "eps": [0.5], "max_iter": 5}, 0.9),
        ({"name": "foolbox:L2DeepFoolAttack", "eps": [2.0], "overshoot": 1.0}, 0.0),
        ({"name": "foolbox:HopSkipJumpAttack", "eps": [2.0], "steps": 2}, 0.25),
        ({"name": "foolbox:L2PGD", "eps": [0.5], "steps": 5}, 0.5),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else f"{value:.0%}",
)
def test_the_best_point_of_a_library_s_attack_is_no_farther_than_what_it_returned(tmp_path, returned, attack, nearer):
    """nearer: the least share of the inputs where it is nearer, because the library asked there and went on."""
    rows = rows_of(tmp_path, attack | {"norm": "l2"}, "closed_form:Linear")
    attacked = rows[rows["distance"] > 0]
    own = attacked["sample"].map(returned)
    assert len(attacked) == len(returned) == 20
    assert attacked["success"].all() and (attacked["distance"] >= 0.999 * distances("l2")[attacked["sample"]]).all()
    assert attacked["distance"].tolist() == pytest.approx(attacked["l2"].tolist())
    assert (attacked["distance"] <= own + 1e-6).all()
    better = attacked["distance"] < 0.999 * own
    assert better.mean() >= nearer and attacked["unreturned"][better].all()


def queries(n: int = 3, eps: float = math.inf) -> Queries:
    return Queries(torch.full((n, 1, 2, 2), 0.5), torch.zeros(n, dtype=torch.long), None, "linf", eps)


def test_queries_keep_the_nearest_success_of_each_input():
    seen, rows = queries(eps=0.3), torch.tensor([0, 1, 1, 2, 2])
    x = seen.x[rows] + torch.tensor([0.1, 0.2, 0.15, 0.4, 0.05]).view(-1, 1, 1, 1)
    wrong = torch.tensor([False, True, True, True, False])
    logits = torch.stack([torch.zeros(5), torch.where(wrong, 1.0, -1.0)], dim=1)
    seen.record_logits(x, rows, logits, 2)
    seen.record_answers(x, rows, verdict_of(logits, 2))
    assert seen.distance.tolist() == pytest.approx([math.inf, 0.15, math.inf], abs=1e-6), "0.4 is beyond ε"
    assert torch.allclose(seen.point[1], x[2]) and seen.moved.all()
    part = seen.only(torch.tensor([2, 0]))
    part.record_answers(x[4:] - 0.01, torch.tensor([0]), verdict_of(torch.tensor([[0.0, 1.0]]), 2))
    assert seen.distance[2].item() == pytest.approx(0.04, abs=1e-6)


def test_what_is_recorded_ends_with_the_first_success():
    seen, rows = queries(), torch.arange(3)
    gradient = torch.ones(3, 1, 2, 2)
    gradient[1], gradient[2, 0, 0, 0] = 0.0, torch.nan
    seen.record_gradients(rows, gradient)
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    seen.record_logits(seen.x, rows, logits, 2)
    seen.record_answers(seen.x, rows, verdict_of(logits, 2))
    seen.record_gradients(rows, torch.zeros(3, 1, 2, 2))
    assert (seen.blind / seen.gradients).tolist() == [0, 1, 1] and seen.gradients.tolist() == [1, 2, 2]
    assert seen.moved.tolist() == [True, False, False]
    seen.record_logits(seen.x, rows, logits - torch.tensor([0.0, 1.0]), 2)
    assert seen.improved.tolist() == [True, False, False]
    seen.record_logits(seen.x + 0.1, rows, torch.tensor([[0.0, 1.0], [1.0, 0.5], [1.0, 0.0]]), 2)
    assert seen.improved.tolist() == [True, True, False] and seen.moved.tolist() == [True] * 3


MATRIX = """
datasets = [{ name = "digits", n = 12 }]
defenses = ["tiny:FlatMean", "tiny:NearestMean"]
[[attacks]]
name = "pgd"
eps = [0.02]
steps = 5
[[attacks]]
name = "noise"
eps = [0.02]
"""


def test_a_run_says_where_an_attack_stopped_trying(tmp_path):
    matrix, out = tmp_path / "m.toml", tmp_path / "out"
    matrix.write_text(MATRIX)
    done = bench_run(matrix, out)
    assert done.returncode == 0, done.stderr
    table = figures(out)
    blind = table.loc["tiny:FlatMean", "blind"]
    assert blind["pgd(steps=5)", 0.02] == blind["worst-case", 0.02] == 1
    assert table.loc[("tiny:NearestMean", "pgd(steps=5)", 0.02), "given_up"] == 0
    rows = records(out)
    assert (
        rows[(rows["defense"] == "tiny:FlatMean") & (rows["attack"] == "pgd(steps=5)")]["blind"].dropna() == 1
    ).all()
    ending = done.stdout.strip().splitlines()[-1]
    assert "1 cell where the attack stopped trying" in ending
    for text in (done.stdout, (out / "report.html").read_text(), (out / "report.md").read_text()):
        assert "‖" in text and "attacked inputs (100.0 %)" in text
    again = bench_run(matrix, out)
    assert again.returncode == 0 and Log(out / "log.jsonl").read()[0][-1]["event"] == "run found finished"
    ending = again.stdout.strip().splitlines()[-1]
    assert "1 cell where the attack stopped trying" in ending, "a finished run says it again"


SUBSTITUTE = {"name": "substitute", "images": 16, "rounds": 1, "epochs": 1}


@pytest.mark.parametrize(("attack", "marked"), [({"name": "tiny:Slow"}, True), (SUBSTITUTE, False)])
def test_an_attack_of_a_user_that_asks_nothing_leaves_a_mark(tmp_path, attack, marked):
    rows = ran(tmp_path, attack | {"eps": [0.01]}, dataset="digits", defense="tiny:NearestMean", n=12)
    assert not rows[-1][rows[-1]["distance"] > 0]["success"].any() and rows[-1]["moved"].all()
    figured = summary(pd.concat(rows).assign(key="k"))
    note = effort_note(figured[figured["attack"] == "worst-case"].iloc[0])
    assert bool(note) == marked, note


def test_a_rejected_output_is_tried_once_more_in_whole_grey_levels(tmp_path):
    """The detector rejects what is off the grid of its data; the attacks' steps end between the levels."""
    attack = {"name": "pgd", "loss": "margin", "eps": [0.3], "steps": 10}
    rows = ran(tmp_path, attack, dataset="digits", defense="planted:OffGrid", n=16)[-1]
    attacked = rows[rows["distance"] > 0]
    assert len(attacked) >= 14 and attacked["success"].all() and attacked["unreturned"].all()
