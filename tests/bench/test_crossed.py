"""Crossed matrices: everything registered is in them, what does not fit has a reason, and work is limited."""

from __future__ import annotations

import json
import math
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from commands import bench_run, last_events
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from manifold_bench.attacks.autoattack import AutoAttack
from manifold_bench.attacks.gradient import FGSM, PGD
from manifold_bench.attacks.threat import UNBOUNDED
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning import jobs
from manifold_bench.bench.planning.crossed import crossed
from manifold_bench.bench.planning.narrow import narrowed
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix, read_matrix
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.planning.work import ADAPTED, FAR, LEAST, OPERATIONS, SMALLEST, limited, operations
from manifold_bench.defenses.identity import key_of, registered


@pytest.fixture(scope="module")
def full():
    return read_matrix("full")


def test_everything_that_is_registered_is_in_full(full):
    assert [entry.name for entry in full.datasets] == list(registered("datasets"))
    defenses, attacks = {choice.name for choice in full.defenses}, {choice.name for choice in full.attacks}
    for kind, found in (("defenses", defenses), ("attacks", attacks)):
        for name in registered(kind):
            adapter = find(kind, name).open_parameters
            assert any(one.startswith(f"{name}:") for one in found) if adapter else name in found, name
    for dataset in registered("datasets"):
        assert {choice.name for choice in full.defenses if choice.defends(dataset)} == defenses
        here = {(choice.name, choice.attack.norm) for choice in full.attacks if choice.runs_on(dataset)}
        for name in registered("attacks"):
            if not (cls := find("attacks", name)).open_parameters:
                assert {norm for one, norm in here if one == name} == set(cls().norms)
    for choice in full.attacks:
        assert choice.attack.norm in UNBOUNDED or len(choice.eps) > 1


def test_every_attack_of_attackbench_has_the_same_passes():
    matrix = read_matrix("attackbench")
    assert {choice.attack.max_passes for choice in matrix.attacks} == {2000}
    assert {choice.name for choice in matrix.attacks} == {choice.name for choice in read_matrix("full").attacks}


def test_the_passes_of_a_matrix_are_those_of_each_attack_that_has_none_of_its_own():
    attacks = [{"name": "fgsm", "eps": 0.1}, {"name": "pgd", "eps": 0.1, "max_passes": 7}]
    raw = {"datasets": ["digits"], "defenses": ["undefended"], "attacks": attacks, "max_passes": 50}
    matrix = parse_matrix(raw, "m.toml")
    assert [choice.attack.max_passes for choice in matrix.attacks] == [50, 7]
    assert [choice.label for choice in matrix.attacks] == ["fgsm", "pgd(max_passes=7)"]
    with pytest.raises(InputError, match="max_passes"):
        parse_matrix(raw | {"max_passes": 0}, "m.toml")


def test_a_new_system_is_in_full_because_it_is_registered(monkeypatch):
    point = EntryPoint("another-fgsm", "manifold_bench.attacks.gradient:FGSM", "manifold_bench.attacks")
    real = registered

    def more(kind):
        return real(kind) | ({point.name: point} if kind == "attacks" else {})

    for module in ("manifold_bench.bench.planning.crossed", "manifold_bench.bench.planning.registry"):
        monkeypatch.setattr(f"{module}.registered", more)
    matrix = read_matrix("full")
    assert {choice.attack.norm for choice in matrix.attacks if choice.name == "another-fgsm"} == set(FGSM.norms)


def test_weights_of_the_zoo_with_other_parameters_are_found(full):
    mine = {choice.label: choice for choice in full.defenses if choice.name == "pgd-training"}
    fashion = next(choice for choice in mine.values() if choice.defends("fashion-mnist"))
    assert fashion.parameters["eps"] == 0.1 and not fashion.defends("mnist")
    assert mine["pgd-training"].parameters == {} and mine["pgd-training"].defends("mnist5k")
    fast = next(choice for choice in full.defenses if choice.name == "inc" and choice.defends("mnist"))
    assert fast.label == "inc-l-bfgs" and fast.parameters["solver"]["method"] == "l-bfgs"


def test_what_does_not_fit_is_left_out_with_a_reason(full):
    plan = make_plan(narrowed(full, ["digits", "cifar10-samples"]), Options())
    running = {(data.dataset.name, ref.label) for data in plan.data for ref in data.defenses}
    for data in plan.data:
        name = data.dataset.name
        for choice in full.defenses:
            if choice.defends(name):
                assert ((name, choice.label) in running) != ((name, choice.label) in plan.omissions.left_out)
    assert ("digits", "undefended") in running
    assert plan.omissions.left_out["digits", "trades"].startswith("no weights; `manifold-bench train --dataset digits")
    assert "no network for images of 1×8×8" in plan.omissions.left_out["digits", "pretrained"]
    assert "only test images" in plan.omissions.left_out["cifar10-samples", "undefended"]
    assert all(ref.trained for data in plan.data for ref in data.defenses)
    skipped = [job for job in plan.jobs if job.skip]
    assert skipped and all(len(str(job.skip).split()) > 3 for job in skipped)
    # a defense that the command line names is trained, or refused, as everywhere else
    named = {"defenses": ["trades"]}
    plan = make_plan(narrowed(full, ["digits"], ["trades"]), Options(named=named), full)
    assert not plan.omissions.left_out
    assert [ref.trained for ref in plan.data[0].defenses if ref.label == "trades"] == [False]
    with pytest.raises(InputError, match="no network for images"):
        make_plan(narrowed(full, ["digits"], ["pretrained"]), Options(named={"defenses": ["pretrained"]}), full)
    # images to train on are missing: the pair is left out, or refused where the data set is named, too
    samples, named = narrowed(full, ["cifar10-samples"], ["trades"]), {"defenses": ["trades"]}
    plan = make_plan(samples, Options(named=named), full)
    assert "trades" not in {ref.label for ref in plan.data[0].defenses}
    assert "only test images" in plan.omissions.left_out["cifar10-samples", "trades"]
    with pytest.raises(InputError, match="'trades' on data set 'cifar10-samples': it has to be trained"):
        make_plan(samples, Options(named=named | {"datasets": ["cifar10-samples"]}), full)


def test_no_job_is_longer_than_the_work_allows(full):
    plan = make_plan(narrowed(full, ["digits"], ["undefended", "inc"]), Options(), full)
    answer = {"undefended": SMALLEST}
    for data in plan.data:
        for ref in data.defenses_of(plan.matrix):
            answer.setdefault(ref.label, operations(ref.load(), data.dataset.load().test.images[0]))
    assert answer["inc"] > 50 * SMALLEST
    shorter = set()
    for job in plan.jobs:
        assert job.operations == answer[job.defense.label]
        if job.attack is not None and not job.skip:
            limit = full.work * (ADAPTED if job.defense.cls.family in job.attack.adapted_to else 1)
            assert job.passes * answer[job.defense.label] <= FAR * limit * 1.1 and job.n >= LEAST
            shorter |= {job.defense.label} if job.n < 100 else set()
    assert shorter == {"undefended", "inc"}
    slow = [job for job in plan.jobs if "the defense is slow" in str(job.skip)]
    assert {job.defense.label for job in slow} <= {"inc"}


def test_the_clean_pass_of_a_defense_that_no_attack_can_afford_is_short(full, monkeypatch):
    monkeypatch.setattr(jobs, "known_operations", dict)
    monkeypatch.setattr(jobs, "operations", lambda defense, image: 1e9 if defense.inference_steps else SMALLEST)
    planned = make_plan(narrowed(full, ["digits"], ["undefended", "inc"]), Options(), full).jobs
    clean = {job.defense.label: job for job in planned if job.attack is None}
    met = {job.defense.label for job in planned if job.attack is not None and not job.skip}
    assert met == {"undefended"}
    assert (clean["undefended"].n, clean["inc"].n) == (100, LEAST)
    assert clean["inc"].indices == clean["undefended"].indices[:LEAST]


def test_operations_of_an_answer_are_counted():
    network = nn.Sequential(nn.Flatten(), nn.Linear(1024, 2**20, bias=False), nn.Linear(2**20, 2, bias=False))
    with torch.no_grad():
        found = operations(network, torch.rand(1, 32, 32))
    assert found == 2.0 ** round(math.log2(2 * (1024 + 2) * 2**20 / 1e9))
    assert operations(nn.Flatten(), torch.rand(1, 4, 4)) == SMALLEST


@given(st.integers(1, 200), st.floats(0.1, 1e7), st.floats(1.0, 1e6), st.integers(1, 400))
def test_images_are_cut_first_and_iterations_second(n, cost, limit, steps):
    found = limited(PGD(steps=steps), n, cost, limit)
    if isinstance(found, str):
        assert cost * min(n, LEAST) > limit and "times the matrix's `work`" in found
        return
    attack, images = found
    assert min(n, LEAST) <= images <= n
    if cost * n <= limit:
        assert found == (PGD(steps=steps), n)
    if attack != PGD(steps=steps):
        assert images == min(n, LEAST)
    share = sum(attack.affordable_passes()) / sum(PGD(steps=steps).passes())
    assert cost * images * share <= limit * 1.01 or attack.max_passes == 2
    assert cost * images * share <= FAR * limit * 1.01


def test_an_attack_without_iterations_gets_fewer_passes():
    found = limited(AutoAttack(), 100, 1000.0, 100.0)
    assert not isinstance(found, str) and found[1] == LEAST
    assert sum(found[0].affordable_passes()) <= sum(AutoAttack().passes()) / 50 * 1.01
    assert "the defense is slow" in str(limited(FGSM(), 100, 1000.0, 100.0))


MATRIX = """
crossed = true
datasets = [{ name = "digits", n = 20 }, { name = "mnist5k", n = 20 }]
defenses = ["undefended", "pgd-training"]
work = 500
"""


def test_the_same_label_may_stand_on_other_data():
    attack = {"name": "fgsm", "norm": "linf"}
    raw = {"datasets": ["digits", "coil100"], "defenses": ["undefended", "pgd-training"]}
    one, other = attack | {"eps": [0.1], "datasets": ["digits"]}, attack | {"eps": [0.05], "datasets": ["coil100"]}
    matrix = parse_matrix(raw | {"attacks": [one, other]}, "here")
    assert [choice.label for choice in matrix.attacks] == ["fgsm", "fgsm"]
    with pytest.raises(InputError, match="'fgsm' is given twice"):
        parse_matrix(raw | {"attacks": [one, attack | {"eps": [0.05]}]}, "here")
    apart = [one | {"defenses": ["undefended"]}, one | {"defenses": ["pgd-training"], "eps": [0.3]}]
    assert len(parse_matrix(raw | {"attacks": apart}, "here").attacks) == 2
    added = narrowed(matrix, attacks=["mim"]).attacks
    assert [(choice.eps, choice.datasets) for choice in added] == [((0.1,), ("digits",)), ((0.05,), ("coil100",))]


def test_every_defense_meets_its_first_attack_before_any_meets_its_second(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(MATRIX, encoding="utf-8")
    out = tmp_path / "out"
    chosen = ("--attack", "fgsm", "--attack", "bim", "--norm", "linf", "--workers", "1")
    done = bench_run("mine.toml", out, *chosen, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    attacks = [event["title"].split(" / ")[2] for event in last_events(out / "log.jsonl", "job finished")]
    assert attacks == ["clean"] * 4 + ["fgsm linf"] * 4 + ["bim linf"] * 4
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run["matrix"]["work"] == 500 and run["skipped"] == []
    page = (out / "report.md").read_text(encoding="utf-8")
    assert "at most about 500 billion operations in a job" in " ".join(page.split())


def test_a_crossed_matrix_takes_in_a_data_set_of_the_command_line():
    matrix = parse_matrix(crossed({"crossed": True, "datasets": ["digits"]}, ["coil100"]), "here")
    assert [entry.name for entry in matrix.datasets] == ["digits", "coil100"]
    sizes = {choice.datasets: choice.eps[-1] for choice in matrix.attacks if choice.label == "fgsm"}
    assert len(sizes) == 2 and ("coil100",) in sizes


def test_the_shipped_defenses_that_optimise_are_counted_already(full):
    """Counting them takes minutes: run `python docs/operations.py DATA_FOLDER` where one of them changed."""
    plan = make_plan(narrowed(full, ["digits", "mnist5k"], [], ["fgsm"]), Options(), full)
    known = json.loads(OPERATIONS.read_text(encoding="utf-8"))
    slow = {job.defense.label: key_of(job.identity["defense"]) for job in plan.jobs if job.inference_steps}
    assert {"inc", "defense-gan", "pixel-defend"} <= set(slow)
    assert not [label for label, key in slow.items() if key not in known]


def test_a_gradient_that_is_the_default_is_not_run_twice(full):
    plan = make_plan(
        narrowed(full, ["digits"], ["undefended", "inc"], ["pgd", "pgd-identity", "pgd-implicit"]), Options(), full
    )
    skips = {(job.defense.label, job.label): str(job.skip) for job in plan.jobs if job.attack}
    assert skips["inc", "pgd"] == skips["inc", "pgd-implicit"] == "None"
    assert "is the default gradient of this defense, so this is the same as 'pgd'" in skips["inc", "pgd-identity"]
    assert "for defenses that project" in skips["undefended", "pgd-identity"]
