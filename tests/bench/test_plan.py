"""The plan: an identity that changes with everything a result depends on, skips with reasons, honest estimates."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning import jobs as plan
from manifold_bench.bench.planning import plan as plan_module
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.narrow import narrowed
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.planning.refs import DatasetRef, DefenseRef, cache_file, defense_ref
from manifold_bench.bench.running.stamp import hash_of
from manifold_bench.bench.running.training import Training, train
from manifold_bench.defenses import weights
from manifold_bench.defenses.identity import key_of

MATRIX = {
    "datasets": [{"name": "digits", "n": 10}],
    "defenses": ["tiny:Coin"],
    "attacks": [{"name": "pgd", "eps": [0.1, 0.2], "steps": 10}],
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANIFOLD_BENCH_CACHE", str(tmp_path / "cache"))


def planned(options: Options | None = None, **changes) -> list[Job]:
    """The jobs of MATRIX with those changes."""
    matrix = parse_matrix(MATRIX | changes, "test.toml")
    options = options or Options()
    return make_plan(matrix, options).jobs


def key(options: Options | None = None, **changes) -> str:
    """The key of the attack's job."""
    return planned(options, **changes)[1].key


def attack(**changes) -> list[dict]:
    return [MATRIX["attacks"][0] | changes]


def test_the_same_matrix_has_the_same_keys_whatever_is_written_around_it():
    assert [job.key for job in planned()] == [job.key for job in planned(timeout=5)]
    assert key() == key(attacks=[{"steps": 10, "eps": [0.2, 0.1], "name": "pgd", "norm": "linf"}])
    assert key(Options(n=10)) == key()


def test_every_ingredient_changes_the_key(monkeypatch):
    keys = {
        "as it is": key(),
        "n": key(datasets=[{"name": "digits", "n": 11}]),
        "n of the command": key(Options(n=12)),
        "device": key(Options(device="meta")),
        "data": key(datasets=[{"name": "tiny:Grey", "n": 10}], defenses=["tiny:Linear"]),
        "defense": key(defenses=["tiny:Jury"]),
        "spec": key(defenses=[{"name": "undefended", "width": 4, "hidden": 8}]),
        "other spec": key(defenses=[{"name": "undefended", "width": 4, "hidden": 9}]),
        "label of the defense": key(defenses=[{"name": "tiny:Coin", "label": "coin"}]),
        "seed": key(seed=1),
        "draws": key(draws=5),
        "norm": key(attacks=attack(norm="l2")),
        "a further ε": key(attacks=attack(eps=[0.1, 0.2, 0.3])),
        "other ε": key(attacks=attack(eps=[0.1, 0.2000001])),
        "steps": key(attacks=attack(steps=11)),
        "random start": key(attacks=attack(random_start=False)),
        "passes allowed": key(attacks=attack(max_forwards=100)),
        "attack": key(attacks=[{"name": "fgsm", "eps": [0.1, 0.2]}]),
        "label of the attack": key(attacks=attack(label="mine")),
        "attack by its module": key(attacks=attack(name="manifold_bench.attacks.gradient:PGD")),
        "library attack": key(attacks=[{"name": "art:DeepFool", "norm": "l2", "eps": [0.1, 0.2]}]),
        "its parameters": key(attacks=[{"name": "art:DeepFool", "norm": "l2", "eps": [0.1, 0.2], "max_iter": 3}]),
        "no ladder": key(attacks=attack(ladder=False)),
        "noise": key(attacks=[{"name": "noise", "norm": "fooling"}]),
        "no bounds": key(attacks=[{"name": "noise", "norm": "unrestricted"}]),
        "clean": planned()[0].key,
        "calibration": planned(calibration=10)[1].key,
        "more of it": planned(calibration=11)[1].key,
    }
    from tiny import Coin

    from manifold_bench.attacks.gradient import PGD
    from manifold_bench.bench.datasets.digits import Digits

    for name, (cls, attribute, value) in {
        "version of the attack": (PGD, "version", 99),
        "version of the defense": (Coin, "version", 99),
        "revision of the data": (Digits, "revision", "other"),
        "revision of the records": (plan, "REVISION", 99),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(cls, attribute, value)
            keys[name] = key()
    with monkeypatch.context() as patch:
        first = Coin.__init__

        def brighter(self, spec):
            first(self, spec)
            self.means += 1e-7

        patch.setattr(Coin, "__init__", brighter)
        keys["weights"] = key()
    for (one, a), (other, b) in itertools.combinations(keys.items(), 2):
        assert a != b, f"{one} and {other} share a key"


def test_an_attack_has_a_job_for_each_seed_and_a_sure_defense_one_clean_pass():
    alone = planned(defenses=["tiny:NearestMean"], calibration=10)
    jobs = planned(defenses=["tiny:NearestMean"], calibration=10, seeds=[0, 5, 6])
    assert [(job.label, job.seed) for job in jobs] == [
        ("clean", 0), ("calibration", 0), ("pgd(steps=10)", 0), ("pgd(steps=10)", 5), ("pgd(steps=10)", 6),
    ]  # fmt: skip
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
    with pytest.raises(
        InputError, match=f"^calibration = {there + 1}: data set 'digits' has {there} validation images$"
    ):
        planned(calibration=there + 1)


def test_draws_matter_to_randomized_defenses_alone():
    sure = ["tiny:NearestMean"]
    assert key(defenses=sure, draws=5) == key(defenses=sure)
    assert planned(draws=5)[0].key != planned()[0].key


@pytest.mark.parametrize("kind", ["defenses", "attacks"])
def test_the_source_of_code_outside_is_part_of_the_key(kind, tmp_path, monkeypatch):
    def keyed(source: str) -> str:
        (tmp_path / "theirs.py").write_text(source, encoding="utf-8")
        sys.modules.pop("theirs", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        name = {"defenses": ["theirs:Coin"], "attacks": [{"name": "theirs:Slow", "eps": [0.1]}]}[kind]
        return key(**{kind: name})

    original = (Path(__file__).parents[1] / "support" / "tiny.py").read_text(encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert keyed(original) == keyed(original) != keyed(original + "\n# another answer\n")
    finally:
        sys.modules.pop("theirs", None)


def test_trained_weights_are_part_of_the_key(tmp_path):
    matrix = parse_matrix(MATRIX | {"defenses": ["tiny:Trained"]}, "test.toml")
    data = DatasetRef("digits", None)
    untrained = defense_ref(matrix.defenses[0], data.load())
    assert (
        not untrained.trained
        and untrained.weights is not None
        and untrained.weights.parent.parent == tmp_path / "cache"
    )
    keys = [key(defenses=["tiny:Trained"])]
    for seed in (0, 1):
        known = hash_of(weights.card_path(untrained.weights))  # what was there when this training was planned
        train(Training(untrained, data, untrained.weights, seed=seed, budget=0.25, known=known))
        trained = defense_ref(matrix.defenses[0], data.load())
        assert trained.trained and trained.weights == untrained.weights
        keys.append(key(defenses=["tiny:Trained"]))
    assert len(set(keys)) == 3


def test_the_cache_tells_trainings_apart():
    matrix = parse_matrix(MATRIX | {"defenses": ["tiny:Trained"]}, "test.toml")
    digits, grey = DatasetRef("digits", None).load(), DatasetRef("tiny:Grey", None).load()
    ref = defense_ref(matrix.defenses[0], digits)
    files = [
        cache_file(ref, digits),
        cache_file(ref, grey),
        cache_file(ref, digits, seed=1),
        cache_file(ref, digits, budget=0.5),
        cache_file(dataclasses.replace(ref, system=dataclasses.replace(ref.system, source_sha256="other")), digits),
    ]
    assert len(set(files)) == len(files)


WIDTH = {"name": "tiny:Deployed", "width": 3}


def refs(*entries) -> list[DefenseRef]:
    """Defenses for the digits."""
    matrix = parse_matrix(MATRIX | {"defenses": list(entries)}, "test.toml")
    return [defense_ref(choice, DatasetRef("digits", None).load()) for choice in matrix.defenses]


def trained(entry, path: Path | None = None) -> Path:
    """The weights of a short training of it."""
    (ref,) = refs(entry)
    assert not ref.trained and ref.weights is not None
    train(Training(ref, DatasetRef("digits", None), path or ref.weights, seed=0, budget=0.25))
    return path or ref.weights


def test_what_changes_the_deployment_alone_shares_the_weights():
    path = trained(WIDTH)
    same, other, wider = refs(WIDTH, WIDTH | {"bias": 2.0}, WIDTH | {"width": 4})
    assert same.weights == other.weights == path and same.weights_sha256 == other.weights_sha256 is not None
    assert not wider.trained and wider.weights != path
    keys = [key(defenses=[entry | {"label": "same"}]) for entry in (WIDTH, WIDTH | {"bias": 2.0})]
    assert keys[0] != keys[1]
    x = DatasetRef("digits", None).load().test.images[:3]
    assert torch.allclose(other.load()(x), same.load()(x) + 2)


def test_every_card_of_the_zoo_is_looked_at_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ZOO", tmp_path)
    path = trained(WIDTH, tmp_path / "digits--some-other-name.safetensors")
    (found,) = refs(WIDTH | {"bias": 3.0})
    assert found.weights == path and found.spec.bias == 3.0
    assert not refs({"name": "tiny:Deployed"})[0].trained
    shutil.copy(path, tmp_path / "digits5k--x.safetensors")
    for other in ("digits5k--x", "grey--some-other-name"):  # other data
        path.with_suffix(".json").rename(tmp_path / f"{other}.json")
        assert not refs(WIDTH)[0].trained
        (tmp_path / f"{other}.json").rename(path.with_suffix(".json"))


def test_the_file_of_the_defense_s_own_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ZOO", tmp_path)
    path = trained(WIDTH, tmp_path / "digits--a.safetensors")
    for suffix in (".safetensors", ".json"):
        shutil.copy(path.with_suffix(suffix), tmp_path / f"digits--Deployed{suffix}")
    assert refs(WIDTH)[0].weights == tmp_path / "digits--Deployed.safetensors"


def test_a_damaged_undefended_model_costs_the_attacks_made_on_it_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ZOO", tmp_path)
    for suffix in ("json", "safetensors"):
        (tmp_path / f"digits--Undefended.{suffix}").write_text("{", encoding="utf-8")
    probes = {job.label: job.skip for job in planned(defenses=["tiny:NearestMean"], diagnose=True)}
    assert "digits--Undefended" in probes["diagnosis:transfer"] and probes["diagnosis:pgd"] is None


def test_the_plan_after_a_training_has_its_weights_and_the_one_before_it_has_not():
    matrix = parse_matrix(MATRIX | {"defenses": [WIDTH, "tiny:Trained"]}, "test.toml")
    before = make_plan(matrix, Options())
    trained(WIDTH)
    why = {("digits", "tiny:Trained"): "training failed: out of luck"}
    after = before.with_trained(why)
    assert [ref.trained for _, ref in before.running] == [False, False]
    assert [ref.trained for _, ref in after.running] == [True, False] and after.untrainable == why
    assert before.jobs[0].key != after.jobs[0].key and before.jobs[2].key == after.jobs[2].key


def test_a_plan_of_a_part_of_a_matrix_knows_the_rest_and_makes_each_reference_once(monkeypatch):
    whole = parse_matrix(MATRIX | {"defenses": ["tiny:NearestMean", "undefended"]}, "test.toml")
    made = []
    original = plan_module.defense_ref
    monkeypatch.setattr(plan_module, "defense_ref", lambda *given: made.append(given[0].label) or original(*given))
    plan = make_plan(narrowed(whole, defenses=["tiny:NearestMean"]), Options(), whole)
    assert {job.defense.label for job in plan.jobs} == {"tiny:NearestMean"}
    assert {job.defense.label for job in plan.other_jobs} == {"undefended"}
    assert made == ["tiny:NearestMean", "undefended"]


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"width": None}, False),  # the default is another width
        ({"bias": None}, True),  # a field younger than the card
        ({"bias": 7.0}, True),
        ({"epochs": 3}, False),  # a field that there is no longer
        ({"width": "wide"}, False),
    ],
)
def test_a_card_of_an_older_version_counts_by_its_training(change, fits):
    path = trained(WIDTH).with_suffix(".json")
    card = json.loads(path.read_text(encoding="utf-8"))
    spec = {name: value for name, value in (card["spec"] | change).items() if value is not None}
    path.write_text(json.dumps(card | {"spec": spec}), encoding="utf-8")
    assert refs(WIDTH)[0].trained == fits


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
            *attack(), *attack(steps=20), {"name": "noise", "norm": "l2", "eps": [1]},
            {"name": "art:HopSkipJump", "norm": "l2", "eps": [1]},
            {"name": "foolbox:BoundaryAttack", "norm": "l2", "eps": [1]},
        ],
    )  # fmt: skip
    for job in jobs:
        assert job.forwards > 0 and job.backwards >= 0 and job.passes >= job.n * len(job.eps)
    ours = {job.label: job.passes for job in jobs if job.defense.label == "tiny:Coin"}
    assert ours["pgd(steps=10)"] < ours["pgd(steps=20)"]


def test_a_pass_costs_what_it_takes_of_the_search_inside():
    """Of INC's 1,000 steps: all at every point, a few with a warm start, none on the classifier or among latents."""
    jobs = planned(
        defenses=["inc"],
        attacks=[
            *attack(label="anew"), *attack(label="warm", warm_start=True, inner_steps=5),
            *attack(label="oblivious", part="classifier"), {"name": "latent", "norm": "l2", "eps": [1]},
        ],
    )  # fmt: skip
    steps = {job.label: job.forwards for job in jobs}
    assert steps["anew"] == 11 and steps["warm"] == pytest.approx(11 * 5 / 1000)
    assert steps["oblivious"] == pytest.approx(11 / 1000) and steps["latent"] < 20


def test_fewer_images_are_some_of_the_more():
    few, many = planned(Options(n=5))[0].indices, planned(Options(n=50))[0].indices
    assert len(set(few)) == 5 and set(few) < set(many)


def test_more_images_than_there_are_is_said_before_anything_runs():
    with pytest.raises(InputError, match="500 test images"):
        planned(Options(n=501))


def test_a_defense_that_does_not_suit_the_data_is_said_before_anything_runs():
    assert planned(defenses=["tiny:Picky"])
    with pytest.raises(InputError) as caught:
        planned(datasets=["tiny:Grey"], defenses=["tiny:Picky"])
    text = str(caught.value)
    assert "'tiny:Picky'" in text and "'grey'" in text and "no use for (1, 2, 2)" in text and "\n" not in text


def test_a_key_never_changes_by_itself():
    identity = {"a": 1, "b": [0.1, "ε"]}
    written = '{"a":1,"b":[0.1,"\\u03b5"]}'
    assert key_of(identity) == key_of({"b": [0.1, "ε"], "a": 1}) == hashlib.sha256(written.encode()).hexdigest()


GAN = {"name": "defense-gan", "network": "strided", "generator": {"model": "wgan-gp", "latent": 2, "width": 2}}


def test_a_randomized_defense_may_have_draws_of_its_own():
    matrix = parse_matrix(
        MATRIX | {"draws": 2, "defenses": [GAN, GAN | {"label": "often", "draws": 5}, "undefended"]}, "test.toml"
    )
    jobs = make_plan(matrix, Options()).jobs
    draws = {(job.defense.label, job.draws, job.identity["protocol"]) for job in jobs if job.attack is None}
    assert {(label, n) for label, n, _ in draws} >= {(matrix.defenses[0].label, 2), ("often", 5)}
    assert {told for label, _, told in draws if label == "often"} == {"worst-of-5"}
    with pytest.raises(InputError, match=r"defenses\[0\].draws: 'undefended' isn't randomized"):
        parse_matrix(MATRIX | {"defenses": [{"name": "undefended", "draws": 3}]}, "test.toml")


def test_parts_are_shared_found_and_trained_before_what_is_built_on_them(tmp_path, monkeypatch):
    """Two defenses with one generator: what is missing is named by part; once it is there, neither misses it."""
    matrix = parse_matrix(MATRIX | {"defenses": [GAN, GAN | {"label": "other", "seed": 1}]}, "test.toml")
    digits = DatasetRef("digits", None)
    one, other = (defense_ref(choice, digits.load()) for choice in matrix.defenses)
    assert list(one.untrained) == ["generator"] and one.parts["classifier"].trained and not one.trained
    assert one.parts["generator"].weights == other.parts["generator"].weights
    assert one.part("generator") == one.parts["generator"] and one.part("") is one
    train(Training(one.part("generator"), digits, one.parts["generator"].weights, seed=0, budget=0.001))
    again = [defense_ref(choice, digits.load()) for choice in matrix.defenses]
    assert all(ref.trained and not ref.untrained for ref in again)
    assert again[0].weights_sha256 == again[1].weights_sha256 != one.parts["classifier"].weights_sha256
    assert again[0].parts["generator"].weights in again[0].files and len(again[0].files) == 2
    loaded = again[0].load()
    assert weights.weights_hash(loaded) == again[0].weights_sha256 and not loaded.training
