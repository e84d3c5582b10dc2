"""Which weights a plan finds for its defenses and their parts, and which it has trained."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from small_plan import GAN, MATRIX, WIDTH, key, refs, trained

from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.planning.refs import DatasetRef, cache_file, defense_ref
from manifold_bench.bench.running.training import Training, train
from manifold_bench.defenses import weights

pytestmark = pytest.mark.usefixtures("own_cache")


def test_the_cache_tells_trainings_apart():
    matrix = parse_matrix(MATRIX | {"defenses": ["tiny:Trained"]}, "test.toml")
    digits, grey = DatasetRef("digits", None).load(), DatasetRef("closed_form:Grey", None).load()
    ref = defense_ref(matrix.defenses[0], digits)
    files = [
        cache_file(ref, digits),
        cache_file(ref, grey),
        cache_file(ref, digits, seed=1),
        cache_file(ref, digits, budget=0.5),
        cache_file(dataclasses.replace(ref, system=dataclasses.replace(ref.system, source_sha256="other")), digits),
    ]
    assert len(set(files)) == len(files)


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


def test_the_plan_after_a_training_has_its_weights_and_the_one_before_it_has_not():
    matrix = parse_matrix(MATRIX | {"defenses": [WIDTH, "tiny:Trained"]}, "test.toml")
    before = make_plan(matrix, Options())
    trained(WIDTH)
    why = {("digits", "tiny:Trained"): "training failed: out of luck"}
    after = before.with_trained(why)
    assert [ref.trained for _, ref in before.running] == [False, False]
    assert [ref.trained for _, ref in after.running] == [True, False] and after.omissions.untrainable == why
    assert before.jobs[0].key != after.jobs[0].key and before.jobs[2].key == after.jobs[2].key


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
