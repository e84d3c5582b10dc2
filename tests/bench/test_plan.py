"""The plan: which jobs there are, skips with reasons, honest estimates."""

from __future__ import annotations

import pytest
from small_plan import GAN, MATRIX, attack, planned

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning import plan as plan_module
from manifold_bench.bench.planning.narrow import narrowed
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.planning.refs import DatasetRef
from manifold_bench.defenses import weights

pytestmark = pytest.mark.usefixtures("own_cache")


def test_an_attack_has_a_job_for_each_seed_and_a_sure_defense_one_clean_pass():
    alone = planned(defenses=["tiny:NearestMean"], calibration=10)
    jobs = planned(defenses=["tiny:NearestMean"], calibration=10, seeds=[0, 5, 6])
    assert [(job.label, job.seed) for job in jobs] == [
        ("clean", 0),
        ("calibration", 0),
        ("pgd(steps=10)", 0),
        ("pgd(steps=10)", 5),
        ("pgd(steps=10)", 6),
    ]
    assert [job.key for job in jobs[:3]] == [job.key for job in alone]  # what is stored for one seed stays valid
    assert {job.clean_key for job in jobs[2:]} == {jobs[0].key}
    assert len({job.key for job in jobs}) == 5
    assert jobs[3].key == planned(defenses=["tiny:NearestMean"], seed=5)[1].key
    assert jobs[3].title.endswith("linf, seed 5")


def test_a_randomized_defense_answers_clean_images_with_each_seed():
    jobs = planned(seeds=[3, 4])
    assert [(job.label, job.seed) for job in jobs] == [
        ("clean", 3),
        ("clean", 4),
        *[("pgd(steps=10)", s) for s in (3, 4)],
    ]
    assert [job.clean_key for job in jobs[2:]] == [job.key for job in jobs[:2]]


def test_noise_depends_on_its_number_and_not_on_which_test_images_are_chosen():
    noise = {"attacks": [{"name": "noise", "norm": "fooling"}]}
    job = planned(**noise)[1]
    assert (job.split, job.indices, job.n) == ("noise", tuple(range(10)), 10)
    clean = planned(**noise)[0]
    assert (clean.split, clean.n) == ("test", 10) and clean.indices != job.indices


def test_calibration_images_are_as_many_as_asked_for_whatever_n_is():
    clean, few, _ = planned(Options(n=7), calibration=20)
    many = planned(calibration=50)[1]
    assert (few.split, few.label, few.attack, few.n, clean.n) == ("validation", "calibration", None, 20, 7)
    assert set(few.indices) < set(many.indices) and len(set(many.indices)) == 50
    assert len(planned()) == 2


def test_more_calibration_images_than_there_are_is_said_before_anything_runs():
    there = len(DatasetRef("digits", None).load().validation)
    assert planned(calibration=there)
    known = f"^calibration = {there + 1}: data set 'digits' has {there} validation images; give that number or less$"
    with pytest.raises(InputError, match=known):
        planned(calibration=there + 1)


def test_a_damaged_undefended_model_costs_the_attacks_made_on_it_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ZOO", tmp_path)
    for suffix in ("json", "safetensors"):
        (tmp_path / f"digits--Undefended.{suffix}").write_text("{", encoding="utf-8")
    probes = {job.label: job.skip for job in planned(defenses=["tiny:NearestMean"], diagnose=True)}
    assert "digits--Undefended" in probes["diagnosis:transfer"] and probes["diagnosis:pgd"] is None


def test_a_plan_of_a_part_of_a_matrix_knows_the_rest_and_makes_each_reference_once(monkeypatch):
    whole = parse_matrix(MATRIX | {"defenses": ["tiny:NearestMean", "undefended"]}, "test.toml")
    made = []
    original = plan_module.defense_ref
    monkeypatch.setattr(plan_module, "defense_ref", lambda *given: made.append(given[0].label) or original(*given))
    plan = make_plan(narrowed(whole, defenses=["tiny:NearestMean"]), Options(), whole)
    assert {job.defense.label for job in plan.jobs} == {"tiny:NearestMean"}
    assert {job.defense.label for job in plan.other_jobs} == {"undefended"}
    assert made == ["tiny:NearestMean", "undefended"]


def test_a_pair_that_makes_no_sense_is_skipped_with_its_reason():
    jobs = planned(
        defenses=["tiny:Coin", {"name": "gmvae", "label": "gmvae"}],
        attacks=[*attack(), *attack(label="part", part="classifier"), *attack(label="unrolled", gradient="unrolled")],
    )
    skipped = {(job.defense.label, job.label): job.skip for job in jobs}
    assert skipped["tiny:Coin", "clean"] is None and skipped["tiny:Coin", "pgd(steps=10)"] is None
    assert "plain classifier" in skipped["tiny:Coin", "part"] and "project" in skipped["tiny:Coin", "unrolled"]
    assert skipped["gmvae", "part"] is None and skipped["gmvae", "unrolled"]
    assert all(job.clean_key == jobs[0].key for job in jobs[1:4]) and all(
        job.clean_key == jobs[4].key for job in jobs[5:]
    )


def test_estimates_are_positive_and_grow_with_the_work():
    jobs = planned(
        defenses=["tiny:Coin", "undefended", "inc"],
        attacks=[
            *attack(),
            *attack(steps=20),
            {"name": "noise", "norm": "l2", "eps": [1]},
            {"name": "art:HopSkipJump", "norm": "l2", "eps": [1]},
            {"name": "foolbox:BoundaryAttack", "norm": "l2", "eps": [1]},
        ],
    )
    for job in jobs:
        assert job.forwards > 0 and job.backwards >= 0 and job.passes >= job.n * len(job.eps)
    ours = {job.label: job.passes for job in jobs if job.defense.label == "tiny:Coin"}
    assert ours["pgd(steps=10)"] < ours["pgd(steps=20)"]


def test_a_pass_costs_what_it_takes_of_the_search_inside():
    """Of INC's 1,000 steps: all at every point, a few with a warm start, none on the classifier or among latents."""
    jobs = planned(
        defenses=["inc"],
        attacks=[
            *attack(label="anew"),
            *attack(label="warm", warm_start=True, inner_steps=5),
            *attack(label="oblivious", part="classifier"),
            {"name": "latent", "norm": "l2", "eps": [1]},
        ],
    )
    steps = {job.label: job.forwards for job in jobs}
    assert steps["anew"] == 11 and steps["warm"] == pytest.approx(11 * 5 / 1000)
    assert steps["oblivious"] == pytest.approx(11 / 1000) and steps["latent"] < 20


def test_fewer_images_are_some_of_the_more():
    few, many = planned(Options(n=5))[0].indices, planned(Options(n=50))[0].indices
    assert len(set(few)) == 5 and set(few) < set(many)


def test_more_images_than_there_are_is_said_before_anything_runs():
    with pytest.raises(InputError, match="500 test images"):
        planned(Options(n=501))


def test_all_images_of_an_added_data_set_are_used_where_the_matrix_asks_for_more():
    matrix = parse_matrix(MATRIX | {"datasets": [{"name": "mnist5k", "n": 999}]}, "test.toml")
    plan = make_plan(narrowed(matrix, ["digits"]), Options(), matrix)
    assert plan.jobs[0].n == 500 and plan.matrix.datasets[0].n is None
    assert plan.small_data == ["digits: all its 500 test images are used, fewer than the matrix's n = 999"]
    few = make_plan(narrowed(matrix, ["digits"]), Options(n=5), matrix)
    assert few.jobs[0].n == 5 and not few.small_data
    with pytest.raises(InputError, match="500 test images"):
        make_plan(narrowed(matrix, ["digits"]), Options(n=501), matrix)


def test_a_defense_that_does_not_suit_the_data_is_said_before_anything_runs():
    assert planned(defenses=["tiny:Picky"])
    with pytest.raises(InputError) as caught:
        planned(datasets=["closed_form:Grey"], defenses=["tiny:Picky"])
    text = str(caught.value)
    assert "'tiny:Picky'" in text and "'grey'" in text and "no use for (1, 2, 2)" in text and "\n" not in text


def test_a_randomized_defense_may_have_draws_of_its_own():
    matrix = parse_matrix(
        MATRIX | {"draws": 2, "defenses": [GAN, GAN | {"label": "often", "draws": 5}, "undefended"]}, "test.toml"
    )
    jobs = make_plan(matrix, Options()).jobs
    draws = {(job.defense.label, job.draws, job.identity["protocol"]) for job in jobs if job.attack is None}
    assert {(label, n) for label, n, _ in draws} >= {(matrix.defenses[0].label, 2), ("often", 5)}
    assert {protocol for label, _, protocol in draws if label == "often"} == {"worst-of-5"}
    with pytest.raises(InputError, match=r"defenses\[0\].draws: 'undefended' is not randomized"):
        parse_matrix(MATRIX | {"defenses": [{"name": "undefended", "draws": 3}]}, "test.toml")
