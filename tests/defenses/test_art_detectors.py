"""ART's detectors as defenses: ART's own decisions, exact gradients where there are any, and what cannot be used."""

from __future__ import annotations

import pickle

import pytest
import torch
from commands import bench_run, matrix_file, records

from manifold_bench.attacks.gradient import FGSM, PGD
from manifold_bench.attacks.target import Target
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.reading import defense_choice
from manifold_bench.bench.planning.registry import find
from manifold_bench.defenses.art_detectors import DETECTORS, ArtDetector
from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.weights import fill_from_zoo, freeze

PARAMETERS = {
    "BinaryInputDetector": {"eps": 0.2, "epochs": 20},
    "BinaryActivationDetector": {"eps": 0.2, "epochs": 20},
    "SubsetScanningDetector": {"images": 50},
}


@pytest.fixture(scope="module", params=DETECTORS)
def defense(request, digits) -> ArtDetector:
    choice = defense_choice(f"art:{request.param}", None, PARAMETERS[request.param], "test")
    made = choice.cls(choice.spec((1, 8, 8), 10))
    fill_from_zoo(made.classifier, "digits")
    figures = made.fit(digits.train, digits.validation, 1.0, 0, Progress())
    assert figures["validation_accuracy"] > 0.6
    return freeze(made.eval())


def test_what_art_detects_is_rejected_and_nothing_else(defense, digits):
    x, y = digits.test.images[:60], digits.test.labels[:60]
    attacked = FGSM(part="classifier").run(Target(defense, len(x)), x, y, 0.2, seed=0)
    both = torch.cat([x, attacked])
    _, found = defense.detector_of_art().detect(both.numpy())
    verdict = defense.verdict(both)
    assert verdict.rejected.tolist() == found.tolist()
    assert torch.equal(verdict.labels[~verdict.rejected], defense.classifier(both).argmax(1)[~verdict.rejected])
    if type(defense).__name__ != "SubsetScanningDetector":
        assert found[60:].mean() > found[:60].mean() + 0.2


def test_gradients_of_networks_are_exact_and_ranks_have_none(defense, digits):
    x = digits.test.images[:20].requires_grad_(True)
    excess = defense.excess(x)
    if type(defense).__name__ == "SubsetScanningDetector":
        assert not excess.requires_grad
        return
    (gradient,) = torch.autograd.grad(excess.sum(), x)
    step = 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        change = (defense.excess(x + step) - defense.excess(x - step)) / 2
    expected = (gradient * step).flatten(1).sum(1)
    assert torch.corrcoef(torch.stack([change, expected]))[0, 1] > 0.99


def test_who_differentiates_the_detector_gets_past_it(defense, digits):
    if type(defense).__name__ == "SubsetScanningDetector":
        pytest.skip("no gradient passes through ranks")
    x, y = digits.test.images[:40], digits.test.labels[:40]
    found = PGD(steps=40).run(Target(defense, len(x)), x, y, 0.4, seed=0)
    assert defense.verdict(found).wrong(y).float().mean() > 0.8


def test_weights_are_all_that_it_has_learnt(defense, digits):
    other = type(defense)(defense.spec)
    other.load_state_dict(defense.state_dict())
    x = digits.test.images[:20]
    assert torch.equal(freeze(other.eval())(x), defense(x))


@pytest.mark.parametrize("name", DETECTORS)
def test_classes_are_found_by_arts_names_and_survive_another_process(name):
    choice = defense_choice(f"art:{name}", None, PARAMETERS[name], "test")
    spec = choice.spec((1, 8, 8), 10)
    assert pickle.loads(pickle.dumps((choice.cls, spec))) == (find("defenses", f"art:{name}"), spec)


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("BeyondDetectorPyTorch", {}, "self-supervised"),
        ("BinaryInputDetectr", {}, "art:BinaryInputDetector"),
        ("BinaryInputDetector", {"epsilon": 0.1}, "eps"),
        ("SubsetScanningDetector", {"scoring_function": "Berk"}, "BerkJones"),
    ],
)
def test_what_cannot_be_used_is_refused_when_it_is_planned(name, parameters, said):
    with pytest.raises(InputError) as caught:
        defense_choice(f"art:{name}", None, parameters, "test")
    assert said in str(caught.value) and "\n" not in str(caught.value)


MATRIX = """
datasets = [{ name = "digits", n = 40 }]
defenses = [{ name = "art:BinaryInputDetector", label = "detector", epochs = 10 }]
[[attacks]]
name = "selective-pgd"
eps = [0.3]
steps = 40
"""


@pytest.mark.slow
def test_a_run_trains_one_and_attacks_it(tmp_path):
    out = tmp_path / "out"
    done = bench_run(matrix_file(tmp_path, MATRIX), out)
    assert done.returncode == 0, done.stderr
    found = records(out)
    assert (found["status"] == "ok").all() and set(found["defense"]) == {"detector"}
    assert found[found["kind"] == "attack"]["success"].mean() > 0.7
