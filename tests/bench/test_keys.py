"""The key of a job: it changes with everything that a result depends on, and with nothing else."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import sys
from pathlib import Path

import pytest
from small_plan import MATRIX, attack, key, planned

from manifold_bench.bench.planning import jobs as plan
from manifold_bench.bench.planning.plan import Options
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.planning.refs import DatasetRef, defense_ref
from manifold_bench.bench.running.stamp import hash_of
from manifold_bench.bench.running.training import Training, train
from manifold_bench.defenses import weights
from manifold_bench.defenses.identity import key_of

pytestmark = pytest.mark.usefixtures("own_cache")


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
        "data": key(datasets=[{"name": "closed_form:Grey", "n": 10}], defenses=["closed_form:Linear"]),
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
        "passes allowed": key(attacks=attack(max_passes=100)),
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


def test_a_key_never_changes_by_itself():
    identity = {"a": 1, "b": [0.1, "ε"]}
    written = '{"a":1,"b":[0.1,"\\u03b5"]}'
    assert key_of(identity) == key_of({"b": [0.1, "ε"], "a": 1}) == hashlib.sha256(written.encode()).hexdigest()
