"""CelebA from small folders in the published layout."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published import answers, message

from manifold_bench.bench.datasets import celeba
from manifold_bench.bench.datasets.base import image_hashes
from manifold_bench.bench.datasets.celeba import CROP, FOLDER, LISTS, CelebA, face

PARTS = [0] * 16 + [1] * 8 + [2] * 8
MALE = [i % 4 == 0 for i in range(32)]
"""Of the small version: 16 training, 8 validation and 8 test images; a quarter of each is male."""


def name(number: int) -> str:
    return f"{number:06d}.jpg"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A small CelebA. An image is as grey as its number says. The lists differ in their order."""
    (tmp_path / FOLDER).mkdir()
    for i in range(32):
        Image.new("RGB", (178, 218), (8 * i, 8 * i, 8 * i)).save(tmp_path / FOLDER / name(i))
    rows = [f"{name(i)} -1  {'1' if MALE[i] else '-1'} -1" for i in reversed(range(32))]
    write_list(tmp_path, monkeypatch, "list_attr_celeba.txt", ["32", "Eyeglasses Male Young ", *rows])
    write_list(tmp_path, monkeypatch, "list_eval_partition.txt", [f"{name(i)} {PARTS[i]}" for i in range(32)])
    monkeypatch.setattr(CelebA, "per_class", {"train": 3, "validation": 1, "test": 2})
    return tmp_path


def write_list(folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, lines: list[str]) -> None:
    raw = "".join(f"{line}\n" for line in lines).encode()
    (folder / file).write_bytes(raw)
    monkeypatch.setitem(celeba.LISTS, file, f"md5:{hashlib.md5(raw, usedforsecurity=False).hexdigest()}")


def numbers(images: torch.Tensor) -> list[int]:
    """Which images of the small version these are; every pixel says it."""
    assert (images.flatten(1).amax(1) - images.flatten(1).amin(1)).max() == 0
    return (images[:, 0, 0, 0] * 255 / 8).round().int().tolist()


def test_splits_are_balanced_choices_from_the_published_partition(folder):
    data = CelebA(folder)
    for part, (split, count) in enumerate([(data.train, 3), (data.validation, 1), (data.test, 2)]):
        assert split.images.shape == (2 * count, 3, 64, 64) and split.images.dtype is torch.float32
        assert torch.bincount(split.labels).tolist() == [count, count] and split.labels.dtype is torch.int64
        chosen = numbers(split.images)
        assert [PARTS[i] for i in chosen] == [part] * (2 * count)
        assert [int(MALE[i]) for i in chosen] == split.labels.tolist()
    hashes = [h for split in (data.train, data.validation, data.test) for h in image_hashes(split.images)]
    assert len(set(hashes)) == len(hashes)
    assert torch.equal(CelebA(folder).train.images, data.train.images)


def test_only_the_images_asked_for_are_read(folder):
    chosen = {name(i) for i in numbers(CelebA(folder).test.images)}
    for path in (folder / FOLDER).iterdir():
        if path.name not in chosen:
            path.unlink()
    data = CelebA(folder)
    assert len(data.test) == 4
    assert ".jpg is not in" in message(lambda: data.validation)


def test_a_face_is_the_centre_at_the_right_scale(tmp_path):
    left, top, right, bottom = CROP
    assert (right - left, bottom - top) == (108, 108) and (left + right, top + bottom) == (178, 218)
    image = np.full((218, 178, 3), 255, np.uint8)  # white around
    image[top:bottom, left:right] = (0, 128, 0)
    image[top : top + 54, left : left + 54] = (200, 0, 0)  # the upper left quarter
    Image.fromarray(image).save(tmp_path / "face.jpg", quality=100, subsampling=0)
    found = face(tmp_path / "face.jpg").astype(int)
    assert found.shape == (64, 64, 3)
    assert np.abs(found[:31, :31] - (200, 0, 0)).max() < 12
    assert np.abs(found[33:, :] - (0, 128, 0)).max() < 12 and np.abs(found[:, 33:] - (0, 128, 0)).max() < 12


def test_files_lie_in_the_folder_or_in_its_subfolder(folder):
    above = CelebA(folder).test.images
    (folder / "celeba").mkdir()
    for file in (*LISTS, FOLDER):
        (folder / file).rename(folder / "celeba" / file)
    assert torch.equal(CelebA(folder).test.images, above)


@pytest.mark.parametrize("file", LISTS)
def test_a_missing_list_is_named_with_what_to_put_where(folder, file):
    (folder / file).unlink()
    text = message(lambda: CelebA(folder).test)
    assert file in text and str(folder) in text and LISTS[file].removeprefix("md5:")[:12] in text and "put" in text


@pytest.mark.parametrize("file", LISTS)
def test_another_list_is_named(folder, file):
    with (folder / file).open("ab") as opened:
        opened.write(b"\n")
    text = message(lambda: CelebA(folder).test)
    assert str(folder / file) in text and "damaged or another file" in text and "put the published file there" in text


def test_a_missing_image_is_named(folder):
    for path in (folder / FOLDER).iterdir():
        path.unlink()
    text = message(lambda: CelebA(folder).test)
    assert name(24)[:3] in text and str(folder / FOLDER) in text and "put the published images there" in text
    (folder / FOLDER).rmdir()
    assert str(folder / FOLDER) in message(lambda: CelebA(folder).test)


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:600], lambda raw: b"<html>not found</html>"])
def test_a_damaged_image_is_named(folder, damage):
    path = folder / FOLDER / name(numbers(CelebA(folder).test.images)[0])
    path.write_bytes(damage(path.read_bytes()))
    text = message(lambda: CelebA(folder).test)
    assert str(path) in text and "damaged" in text


def test_an_image_of_another_size_is_named(folder):
    path = folder / FOLDER / name(numbers(CelebA(folder).test.images)[0])
    Image.new("RGB", (64, 60)).save(path)
    text = message(lambda: CelebA(folder).test)
    assert str(path) in text and "64×60" in text and "178×218" in text


def test_it_says_how_to_name_its_folder(tmp_path):
    text = message(lambda: CelebA().test)
    assert "--data" in text and "MANIFOLD_BENCH_DATA" in text and FOLDER in text and all(file in text for file in LISTS)
    assert "nowhere" in message(lambda: CelebA(tmp_path / "nowhere").test)


@pytest.mark.parametrize(
    ("defense", "parameters", "outputs"),
    [
        ("undefended", {}, 2),
        ("gmvae", {}, 3),
        ("manifold_bench.defenses.deep_image_prior:DeepImagePrior", {"steps": 2}, 2),
    ],
)
def test_defenses_take_its_images(defense, parameters, outputs):
    assert answers(defense, CelebA, **parameters).shape == (2, outputs)
