"""ART's preprocessors as defenses: ART's own answers and gradients, and no wall for who knows them."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch
from art.defences import preprocessor
from art.estimators.classification import PyTorchClassifier
from commands import bench_run, matrix_file, records
from torch import nn
from torch.nn import functional as F

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.reading import defense_choice
from manifold_bench.bench.planning.registry import find
from manifold_bench.defenses.art_defenses import ArtDefense
from manifold_bench.defenses.weights import fill_from_zoo

DETERMINISTIC = {
    "JpegCompression": {"quality": 30},
    "FeatureSqueezing": {"bit_depth": 2},
    "SpatialSmoothing": {"window_size": 2},
}
RANDOMIZED = {
    "TotalVarMin": {},
    "GaussianAugmentation": {"sigma": 0.2},
    "Cutout": {"length": 3},
    "CutoutPyTorch": {"length": 3},
}


def made(name: str, parameters: dict[str, object], shape: tuple[int, int, int] = (1, 8, 8)) -> ArtDefense:
    choice = defense_choice(f"art:{name}", None, parameters, "test")
    return choice.cls(choice.spec(shape, 10)).eval().requires_grad_(False)


def on_digits(name: str, parameters: dict[str, object]) -> ArtDefense:
    defense = made(name, parameters)
    fill_from_zoo(defense.classifier, "digits")
    return defense


class InFloat32(nn.Module):
    """Under NumPy 2 FeatureSqueezing makes float64 of float32, which ART hands to the model."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_answers_and_gradients_are_those_of_arts_own_classifier(name, digits):
    defense, given = on_digits(name, DETERMINISTIC[name]), {"clip_values": (0.0, 1.0), **DETERMINISTIC[name]}
    if name != "FeatureSqueezing":  # which takes any order of axes
        given["channels_first"] = True
    theirs = PyTorchClassifier(
        nn.Sequential(InFloat32(), defense.classifier),
        nn.CrossEntropyLoss(reduction="sum"),
        (1, 8, 8),
        10,
        clip_values=(0.0, 1.0),
        preprocessing_defences=getattr(preprocessor, name)(**given),
        device_type="cpu",
    )
    x, y = digits.test.images[:40].requires_grad_(True), digits.test.labels[:40]
    logits = defense(x)
    images = x.detach().numpy()
    np.testing.assert_allclose(logits.detach().numpy(), theirs.predict(images), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits, defense.classifier(x), atol=0.01)
    gradient = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)[0]
    own = theirs.loss_gradient(images, F.one_hot(y, 10).numpy())
    np.testing.assert_allclose(gradient.numpy(), own, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", RANDOMIZED)
def test_random_numbers_follow_from_torchs_seed_alone(name):
    defense, x = made(name, RANDOMIZED[name], (3, 9, 8)), torch.rand(5, 3, 9, 8)

    def seen(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return defense.perceived(x)

    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert defense.randomized and torch.equal(seen(0), seen(0)) and not torch.equal(seen(0), seen(1))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    torch.manual_seed(0)
    assert not torch.equal(defense.perceived(x), defense.perceived(x))


def test_total_variation_is_minimised_over_the_pixels_of_each_channel():
    """Noise on a constant image is smoothed away in both directions."""
    noise = 0.1 * torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    smooth = made("TotalVarMin", {"max_iter": 50}, (1, 12, 12)).perceived((0.5 + noise).clamp(0, 1))
    for axis in (2, 3):
        assert smooth.diff(dim=axis).abs().mean() < 0.1 * noise.diff(dim=axis).abs().mean()


def test_classes_and_parameters_survive_another_process():
    choice = defense_choice("art:JpegCompression", None, {"quality": 20}, "test")
    spec = choice.spec((1, 8, 8), 10)
    assert pickle.loads(pickle.dumps((choice.cls, spec))) == (find("defenses", "art:JpegCompression"), spec)
    assert choice.label == "art:JpegCompression(quality=20)" and spec.quality == 20


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("art:JpegCompresion", {}, "art:JpegCompression"),
        ("art:ThermometerEncoding", {}, "channels"),
        ("art:PixelDefend", {}, "PixelCNN"),
        ("art:Mixup", {}, "training"),
        ("art:SpatialSmoothingTensorFlowV2", {}, "art:SpatialSmoothing"),
        ("art", {}, "art:ClassName"),
        ("art:", {}, "known"),
        ("magnet:MagNet", {}, "colon"),
        ("art:JpegCompression", {"quality": 0}, "100"),
        ("art:JpegCompression", {"quality": "high"}, "quality"),
        ("art:JpegCompression", {"qualty": 5}, "quality"),
        ("art:JpegCompression", {"clip_values": [0, 1]}, "allowed: classifier, quality"),
        ("art:Cutout", {}, "length"),
    ],
)
def test_what_cannot_be_used_is_refused_when_it_is_planned(name, parameters, said):
    with pytest.raises(InputError) as caught:
        defense_choice(name, None, parameters, "test")
    text = str(caught.value)
    assert said in text and "\n" not in text


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "kornia.filters", None)
    with pytest.raises(InputError, match="pip install kornia"):
        defense_choice("art:SpatialSmoothingPyTorch", None, {}, "test")


MATRIX = """
datasets = [{ name = "digits", n = 60 }]
defenses = [
    "undefended", { name = "art:FeatureSqueezing", label = "bits", bit_depth = 2 }, "art:SpatialSmoothing",
    { name = "art:GaussianAugmentation", label = "noisy", sigma = 0.1, draws = 3 },
]
[[attacks]]
label = "oblivious"
name = "pgd"
part = "classifier"
eps = [0.2]
steps = 20
[[attacks]]
name = "pgd"
eps = [0.2]
steps = 40
"""


def test_a_matrix_of_preprocessors_falls_to_who_differentiates_them(tmp_path):
    out = tmp_path / "out"
    assert bench_run(matrix_file(tmp_path, MATRIX), out).returncode == 0
    found = records(out)
    assert (found["status"] == "ok").all() or set(found[found["status"] != "ok"]["defense"]) == {"undefended"}
    clean = found[found["attack"] == "clean"]
    for defense in ("bits", "art:SpatialSmoothing", "noisy"):
        right = clean[clean["defense"] == defense].set_index("sample").eval("label == clean_label")
        attacked = found[(found["defense"] == defense) & (found["attack"] == "pgd")].set_index("sample")
        assert right.mean() > 0.6
        assert attacked["success"][right[right].index].mean() > 0.85
