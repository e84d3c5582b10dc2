"""SVHN from small files in the published format."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from published import answers, message
from scipy.io import savemat

from manifold_bench.bench.datasets import svhn
from manifold_bench.bench.datasets.base import image_hashes
from manifold_bench.bench.datasets.svhn import FILES, Svhn

PER_CLASS = 510


@pytest.fixture(scope="module")
def raw() -> dict[str, bytes]:
    """A small SVHN: 5,100 training images, 30 test images; the digit 0 is written as 10."""
    random = np.random.default_rng(0)
    contents = {}
    for name, labels in {
        "train_32x32.mat": random.permutation(np.repeat(np.arange(1, 11), PER_CLASS)),
        "test_32x32.mat": np.arange(30) % 10 + 1,
    }.items():
        file = io.BytesIO()
        pixels = random.integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
        savemat(file, {"X": pixels, "y": labels.astype(np.uint8)[:, None]})
        contents[name] = file.getvalue()
    return contents


@pytest.fixture
def folder(tmp_path, monkeypatch, raw) -> Path:
    for name, content in raw.items():
        monkeypatch.setitem(svhn.FILES, name, f"sha256:{hashlib.sha256(content).hexdigest()}")
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_images_and_labels_are_those_of_the_file(folder, raw):
    random = np.random.default_rng(0)
    random.permutation(np.repeat(np.arange(1, 11), PER_CLASS))
    random.integers(0, 256, (32, 32, 3, 10 * PER_CLASS), dtype=np.uint8)
    pixels = random.integers(0, 256, (32, 32, 3, 30), dtype=np.uint8)
    test = Svhn(folder).test
    assert test.images.shape == (30, 3, 32, 32) and test.images.dtype is torch.float32
    assert test.images[7, 2, 5, 9] == pixels[5, 9, 2, 7] / np.float32(255)
    assert test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 3 and test.labels.dtype is torch.int64


def test_validation_is_500_of_each_class_of_the_training_file(folder):
    data = Svhn(folder)
    assert torch.bincount(data.validation.labels).tolist() == [500] * 10
    assert torch.bincount(data.train.labels).tolist() == [PER_CLASS - 500] * 10
    hashes = [h for split in (data.train, data.validation, data.test) for h in image_hashes(split.images)]
    assert len(set(hashes)) == len(hashes) == 10 * PER_CLASS + 30
    assert torch.equal(Svhn(folder).validation.images, data.validation.images)


def test_files_lie_in_the_folder_or_in_its_subfolder(folder):
    above = Svhn(folder).test.images
    (folder / "svhn").mkdir()
    for name in FILES:
        (folder / name).rename(folder / "svhn" / name)
    assert torch.equal(Svhn(folder).test.images, above)


def test_the_test_images_need_the_test_file_alone(folder):
    (folder / "train_32x32.mat").unlink()
    assert len(Svhn(folder).test) == 30


@pytest.mark.parametrize(("name", "split"), [("train_32x32.mat", "train"), ("test_32x32.mat", "test")])
def test_a_missing_file_is_named_with_what_to_put_where(folder, name, split):
    (folder / name).unlink()
    (folder / "svhn").mkdir()
    text = message(lambda: getattr(Svhn(folder), split))
    checksum = FILES[name].removeprefix("sha256:")
    assert name in text and str(folder / "svhn") in text and checksum[:12] in text and "put" in text


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:-1], lambda raw: raw[:-9] + b"x" + raw[-8:]])
def test_a_damaged_file_is_named(folder, damage):
    path = folder / "test_32x32.mat"
    path.write_bytes(damage(path.read_bytes()))
    text = message(lambda: Svhn(folder).test)
    checksum = FILES["test_32x32.mat"].removeprefix("sha256:")
    assert str(path) in text and "damaged" in text and checksum[:12] in text and "put the published file there" in text


def test_it_says_how_to_name_its_folder(tmp_path):
    text = message(lambda: Svhn().test)
    assert "--data" in text and "MANIFOLD_BENCH_DATA" in text and all(name in text for name in FILES)
    assert "nowhere" in message(lambda: Svhn(tmp_path / "nowhere").train)


@pytest.mark.parametrize(("defense", "parameters", "outputs"), [("undefended", {}, 10), ("gmvae", {"latent": 32}, 11)])
def test_defenses_take_its_images(defense, parameters, outputs):
    assert answers(defense, Svhn, **parameters).shape == (2, outputs)
