"""A budget of time: images first, iterations second, no system left out, and the same choice again."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifold_bench.attacks.autoattack import AutoAttack
from manifold_bench.attacks.gradient import PGD
from manifold_bench.bench.arguments import run_parser, seconds_of
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.budget import ENOUGH, LEAST, SHARES, Cut, choose, plan_within, shortened
from manifold_bench.bench.planning.matrix import AttackEntry
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import attack_choice, parse_matrix
from manifold_bench.bench.run import main

MATRIX = {
    "datasets": [{"name": "digits", "n": 100}],
    "defenses": ["undefended", "pgd-training"],
    "attacks": [
        {"name": "pgd", "norm": "linf", "eps": [0.1], "steps": 40},
        {"name": "fgsm", "norm": "linf", "eps": [0.1], "n": 50},
    ],
}


def cost(cut: Cut) -> float:
    return 1.0 + cut.n * (1 + 40 * cut.share)


@given(st.integers(1, 500), st.floats(1, 1e5))
def test_what_is_chosen_fits_and_images_are_cut_before_iterations(most, seconds):
    cut, taken = choose(most, seconds, cost)
    assert 1 <= cut.n <= most and cut.share in SHARES and taken == cost(cut)
    if taken > seconds:
        assert cut == Cut(min(most, LEAST), SHARES[-1])
    if cut.share < 1:
        assert cost(Cut(min(most, ENOUGH), 2 * cut.share)) > seconds
    elif cut.n < most:
        assert cut.n >= min(most, ENOUGH) and cost(Cut(math.ceil(1.1 * cut.n) + 1, 1.0)) > seconds


def test_fewer_iterations_are_another_attack_and_one_without_any_stays():
    short, changes = shortened(PGD(norm="linf", steps=40, restarts=3), 0.25)
    assert (short.steps, short.restarts, changes) == (10, 3, {"steps": (40, 10)})
    assert shortened(AutoAttack(norm="linf"), 0.25) == (AutoAttack(norm="linf"), {})
    entry = AttackEntry.model_validate({"name": "art:DeepFool", "norm": "l2", "eps": [1.0], "max_iter": 8})
    assert shortened(attack_choice(entry, "here").attack, 0.5)[0].parameters == {"max_iter": 4}


def test_the_plan_within_a_budget_has_every_system_and_says_what_was_cut():
    plan = make_plan(parse_matrix(MATRIX, "here"), Options())

    def passes(one) -> float:
        return sum(job.passes for job in one.jobs)

    small, cut = plan_within(plan, "1h", passes(plan) / 12, None, passes)
    assert passes(small) <= passes(plan) / 12 and cut.share < 1 and cut.n >= ENOUGH
    pairs = [{(job.defense.label, type(job.attack)) for job in one.jobs} for one in (plan, small)]
    assert pairs[0] == pairs[1]
    labels = {job.label for job in small.jobs}
    assert f"pgd [{math.ceil(40 * cut.share)} of 40 steps]" in labels and "fgsm" in labels
    assert not {job.key for job in plan.jobs} & {job.key for job in small.jobs}
    for part in ("1h", f"n = {cut.n} of 100 (digits)", "40 steps"):
        assert part in small.matrix.budget
    again, _ = plan_within(plan, "1h", 0.0, cut, passes)
    assert [job.key for job in again.jobs] == [job.key for job in small.jobs]
    whole, kept = plan_within(plan, "1h", 1e12, None, passes)
    assert kept == Cut(100, 1.0) and [job.key for job in whole.jobs] == [job.key for job in plan.jobs]
    with pytest.raises(InputError, match="--budget"):
        plan_within(plan, "1s", 1.0, None, passes)


def test_attacks_that_are_skipped_are_not_named_among_those_that_were_cut():
    skipped = {"name": "selective-pgd", "norm": "linf", "eps": [0.1], "steps": 40}
    plan = make_plan(parse_matrix(MATRIX | {"attacks": [*MATRIX["attacks"], skipped]}, "here"), Options())
    small, _ = plan_within(plan, "1h", 1.0, Cut(20, 0.5), lambda one: 0.0)
    assert {bool(job.skip) for job in small.jobs if job.label.startswith("selective-pgd")} == {True}
    assert "pgd [20 of 40 steps]" in small.matrix.budget and "selective-pgd" not in small.matrix.budget


def test_a_budget_that_cuts_nothing_keeps_the_number_of_images_of_the_command_line():
    plan = make_plan(parse_matrix(MATRIX, "here"), Options(n=7))
    kept, _ = plan_within(plan, "1h", 1.0, None, lambda one: 0.0)
    assert [job.key for job in kept.jobs] == [job.key for job in plan.jobs]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5 min", 90), ("2h", 7200)])
def test_durations(text, seconds):
    assert seconds_of(run_parser().parse_args(["--budget", text]).budget) == seconds


@pytest.mark.parametrize("text", ["2", "h", "0s", "-1h", "1d", "1e3s", "nans"])
def test_no_durations(text):
    with pytest.raises(InputError, match="--budget"):
        run_parser().parse_args(["--budget", text])


def test_the_second_command_with_the_same_budget_goes_on_with_the_first_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("MANIFOLD_BENCH_CACHE", str(tmp_path / "cache"))
    matrix, out = tmp_path / "m.toml", tmp_path / "out"
    matrix.write_text(
        'datasets = [{ name = "digits", n = 30 }]\ndefenses = ["undefended"]\n'
        '[[attacks]]\nname = "pgd"\nnorm = "linf"\neps = [0.1]\nsteps = 4\n',
        encoding="utf-8",
    )
    command = ["--matrix", str(matrix), "--out", str(out), "--budget", "1h", "--workers", "0", "--quiet"]
    assert main(command) == 0
    ((key, chosen),) = json.loads((out / "budget.json").read_text(encoding="utf-8")).items()
    assert chosen == {"n": 30, "share": 1.0}
    before = {path.name for path in (out / "records").glob("*.parquet")}
    (out / "budget.json").write_text(json.dumps({key: {"n": 20, "share": 0.5}}), encoding="utf-8")
    assert main(command) == 0
    after = {path.name for path in (out / "records").glob("*.parquet")} - before
    assert len(after) == 2  # the stored choice was taken: other images, other steps
    said = json.loads((out / "run.json").read_text(encoding="utf-8"))["matrix"]["budget"]
    assert "n = 20 of 30" in said and "2 of 4 steps" in said
    assert said in (out / "report.html").read_text(encoding="utf-8")
    assert said in (out / "report.md").read_text(encoding="utf-8")
    assert all(said in table.read_text(encoding="utf-8") for table in (out / "tables").glob("*.md"))
    for damage in (
        "[" * 100_000,
        "[]",
        json.dumps({key: {"n": -5, "share": 1.0}}),
        f'{{"{key}": {{"n": 9, "share": NaN}}}}',
    ):
        (out / "budget.json").write_text(damage, encoding="utf-8")
        assert main([*command, "--dry-run"]) == 0  # a choice that none can have made is made anew
