"""CIFAR-10 from small files in the published binary format."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from published import answers, message

from manifold_bench.bench.datasets import cifar10
from manifold_bench.bench.datasets.base import image_hashes
from manifold_bench.bench.datasets.cifar10 import FILES, TEST, TRAIN, Cifar10

PER_BATCH = 102
"""Images of each class in each training file of the small version."""


def records(labels: np.ndarray, pixels: np.ndarray) -> bytes:
    """labels [N], pixels [N,row,column,RGB] as the published files have them: label, red, green, blue."""
    return b"".join(
        bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
        for label, image in zip(labels, pixels, strict=True)
    )


@pytest.fixture(scope="module")
def contents() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labels and pixels of a small CIFAR-10: five times 1,020 training images, 30 test images."""
    random = np.random.default_rng(0)
    made = {}
    for name in FILES:
        labels = np.arange(30) % 10 if name == TEST else random.permutation(np.repeat(np.arange(10), PER_BATCH))
        made[name] = labels.astype(np.uint8), random.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    return made


@pytest.fixture(scope="module")
def raw(contents) -> dict[str, bytes]:
    return {name: records(*content) for name, content in contents.items()}


@pytest.fixture
def folder(tmp_path, monkeypatch, raw) -> Path:
    for name, content in raw.items():
        monkeypatch.setitem(cifar10.FILES, name, f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}")
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_images_and_labels_are_those_of_the_file(folder, contents):
    test = Cifar10(folder).test
    labels, pixels = contents[TEST]
    assert test.images.shape == (30, 3, 32, 32) and test.images.dtype is torch.float32
    assert torch.equal(test.images, torch.from_numpy(pixels.transpose(0, 3, 1, 2) / np.float32(255)))
    assert test.labels.tolist() == labels.tolist() and test.labels.dtype is torch.int64


def test_validation_is_500_of_each_class_of_all_training_files(folder, contents):
    data = Cifar10(folder)
    assert torch.bincount(data.validation.labels).tolist() == [500] * 10
    assert torch.bincount(data.train.labels).tolist() == [5 * PER_BATCH - 500] * 10
    hashes = [h for split in (data.train, data.validation, data.test) for h in image_hashes(split.images)]
    assert len(set(hashes)) == len(hashes) == 50 * PER_BATCH + 30
    assert torch.equal(Cifar10(folder).validation.images, data.validation.images)
    for name in TRAIN:
        first = torch.from_numpy(contents[name][1][:1].transpose(0, 3, 1, 2) / np.float32(255))
        assert image_hashes(first)[0] in hashes


@pytest.mark.parametrize("subfolder", ["cifar10", "cifar-10-batches-bin"])
def test_files_lie_in_the_folder_or_in_a_subfolder(folder, subfolder):
    above = Cifar10(folder)
    assert set(above.files) == {folder / name for name in FILES}
    images = above.test.images
    (folder / subfolder).mkdir()
    for name in FILES:
        (folder / name).rename(folder / subfolder / name)
    assert torch.equal(Cifar10(folder).test.images, images)


def test_the_test_images_need_the_test_file_alone(folder):
    for name in TRAIN:
        (folder / name).unlink()
    assert len(Cifar10(folder).test) == 30


@pytest.mark.parametrize(("name", "split"), [(TEST, "test"), (TRAIN[0], "train"), (TRAIN[4], "validation")])
def test_a_missing_file_is_named_with_what_to_put_where(folder, name, split):
    (folder / name).unlink()
    text = message(lambda: getattr(Cifar10(folder), split))
    assert name in text and str(folder) in text and FILES[name].removeprefix("md5:")[:12] in text and "put" in text


@pytest.mark.parametrize(
    "damage", [lambda raw: b"", lambda raw: raw[:-1], lambda raw: raw[:-3073], lambda raw: b"\x80\x04."]
)
def test_a_damaged_file_is_named(folder, damage):
    path = folder / TEST
    path.write_bytes(damage(path.read_bytes()))
    text = message(lambda: Cifar10(folder).test)
    checksum = FILES[TEST].removeprefix("md5:")
    assert str(path) in text and "damaged" in text and checksum[:12] in text and "put the published file there" in text


def test_it_says_how_to_name_its_folder(tmp_path):
    text = message(lambda: Cifar10().test)
    assert "--data" in text and "MANIFOLD_BENCH_DATA" in text and TRAIN[0] in text and TEST in text
    assert "cifar-10-batches-bin" in text and "nowhere" in message(lambda: Cifar10(tmp_path / "nowhere").train)


@pytest.mark.parametrize(
    ("defense", "parameters", "outputs"),
    [("undefended", {}, 10), ("manifold_bench.defenses.deep_image_prior:DeepImagePrior", {"steps": 2}, 10)],
)
def test_defenses_take_its_images(defense, parameters, outputs):
    assert answers(defense, Cifar10, **parameters).shape == (2, outputs)
