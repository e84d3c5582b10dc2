"""COIL-100 from the reduced file and from the published PNG files: splits, pixels, and what a user reads."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published import answers, message

from manifold_bench.bench.datasets import coil100
from manifold_bench.bench.datasets.base import image_hashes
from manifold_bench.bench.datasets.coil100 import REDUCED, Coil100

DATA = os.environ.get("MANIFOLD_BENCH_DATA")
SPLIT = Path(__file__).parents[2] / "docs" / "coil100_split.txt"

OBJECTS, VIEWS = 3, 72
"""Of the tests' own small version."""


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """[object, view, row, column, RGB] of the small version."""
    return np.random.default_rng(0).integers(0, 256, (OBJECTS, VIEWS, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def small(monkeypatch, pixels) -> None:
    """COIL-100 is the small version."""
    monkeypatch.setattr(coil100, "OBJECTS", OBJECTS)
    monkeypatch.setattr(coil100, "REDUCED_SHA256", hashlib.sha256(pixels.tobytes()).hexdigest())


@pytest.fixture
def reduced(small, tmp_path, pixels) -> Path:
    """A folder with the small version's coil100_32.npz."""
    np.savez_compressed(tmp_path / REDUCED, images=pixels)
    return tmp_path


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """Images of 128×128 whose reduction is another than `pixels`."""
    return np.random.default_rng(1).integers(0, 256, (OBJECTS, VIEWS, 128, 128, 3), dtype=np.uint8)


def write_png(folder: Path, images: np.ndarray) -> Path:
    for number, views in enumerate(images, 1):
        for view, image in enumerate(views):
            Image.fromarray(image).save(folder / f"obj{number}__{5 * view}.png", compress_level=0)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory, large) -> Path:
    return write_png(tmp_path_factory.mktemp("png"), large)


@pytest.fixture
def views(small, tmp_path, written) -> Path:
    """A folder with the PNG files of the small version; each may be replaced."""
    for path in written.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


# Splits


def published_split() -> dict[int, tuple[list[int], list[int]]]:
    """From the documentation: object → its test views and its validation views."""
    lines = SPLIT.read_text(encoding="utf-8").splitlines()
    rows = [re.split("[:|]", line) for line in lines if line[0].isdigit()]
    return {int(number): ([*map(int, test.split())], [*map(int, held.split())]) for number, test, held in rows}


def test_the_split_is_the_published_one(tmp_path, monkeypatch):
    """In images that say which object and view they are."""
    pixels = np.zeros((100, 72, 32, 32, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.indices((100, 72))[:, :, :, None, None]
    np.savez_compressed(tmp_path / REDUCED, images=pixels)
    monkeypatch.setattr(coil100, "REDUCED_SHA256", hashlib.sha256(pixels.tobytes()).hexdigest())
    data = Coil100(tmp_path)
    assert data.zoo == "coil100"

    def chosen(split) -> dict[int, list[int]]:
        objects, found = (split.images[:, :2, 0, 0] * 255).round().int().T
        assert torch.equal(objects, split.labels.int())
        return {number + 1: found[objects == number].tolist() for number in range(100)}

    test, validation, train = chosen(data.test), chosen(data.validation), chosen(data.train)
    assert published_split() == {number: (test[number], validation[number]) for number in range(1, 101)}
    for number in range(1, 101):
        assert (len(test[number]), len(validation[number]), len(train[number])) == (18, 6, 48)
        assert sorted(test[number] + validation[number] + train[number]) == list(range(72))


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason=f"needs {REDUCED}: set MANIFOLD_BENCH_DATA")
def test_the_real_file():
    data = Coil100(Path(str(DATA)))
    splits = (data.test, data.validation, data.train)
    for split, per_class in zip(splits, (18, 6, 48), strict=True):
        assert split.images.shape == (100 * per_class, 3, 32, 32) and split.images.dtype is torch.float32
        assert split.images.amin() >= 0 and 0.9 < split.images.amax() <= 1
        assert torch.bincount(split.labels).tolist() == [per_class] * 100
    hashes = [image_hashes(split.images) for split in splits]
    everything = [h for split in hashes for h in split]
    assert len(set(everything)) == len(everything) == 7200  # no image twice, so none in two splits
    digest = hashlib.sha256("".join(hashes[0]).encode() + data.test.labels.numpy().tobytes()).hexdigest()
    # whoever changes an image, a label, a split or the order has to change the revision, and this test with it
    assert (data.revision, data.zoo, digest[:16]) == ("coil100-c583eb9508fe/split-1", "coil100", "02118140f2a60b69")


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason=f"needs {REDUCED}: set MANIFOLD_BENCH_DATA")
def test_the_real_file_has_its_views_in_the_order_of_rotation():
    """As the PNG files are numbered: each object's views are nearer to the next one than to the one after."""
    views = Coil100(Path(str(DATA))).whole.images.view(100, 72, -1)
    one, two = ((views - views.roll(step, 1)).norm(dim=2).mean(1) for step in (1, 2))
    assert (one < two).all()


# Pixels


def test_the_reduced_file_is_read_as_it_is(reduced, pixels):
    data = Coil100(reduced)
    expected = torch.from_numpy(pixels.reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2) / 255
    assert torch.equal(data.whole.images, expected)
    assert data.whole.labels.tolist() == [0] * 72 + [1] * 72 + [2] * 72


def test_published_images_are_reduced_by_block_means(views, large):
    blocks = large.reshape(OBJECTS * VIEWS, 32, 4, 32, 4, 3).mean((2, 4))
    expected = torch.from_numpy(np.floor(blocks + 0.5).astype(np.float32)).permute(0, 3, 1, 2) / 255
    assert torch.equal(Coil100(views).whole.images, expected)
    assert Coil100(views).whole.labels.tolist() == [0] * 72 + [1] * 72 + [2] * 72


@pytest.mark.parametrize("subfolder", ["coil100", "coil-100"])
def test_files_lie_in_the_folder_or_in_a_subfolder(reduced, views, subfolder):
    """And where both forms are there, the reduced file counts."""
    both = Coil100(reduced)
    assert both.zoo == "coil100"
    (reduced / subfolder).mkdir()
    (reduced / REDUCED).rename(reduced / subfolder / REDUCED)
    assert torch.equal(Coil100(reduced).test.images, both.test.images)
    (reduced / subfolder / REDUCED).unlink()
    alone = Coil100(reduced)
    for path in reduced.glob("*.png"):
        path.rename(reduced / subfolder / path.name)
    assert torch.equal(Coil100(reduced).test.images, alone.test.images)


def test_other_pixels_are_another_revision_and_know_no_weights_of_the_zoo(reduced, views, written, tmp_path_factory):
    file, png = Coil100(reduced), Coil100(written)
    assert png.revision != file.revision and (file.zoo, png.zoo) == ("coil100", "coil100-png")
    other = tmp_path_factory.mktemp("other")
    for path in written.iterdir():
        (other / path.name).symlink_to(path)
    (other / "obj3__355.png").unlink()
    Image.new("RGB", (128, 128)).save(other / "obj3__355.png")
    assert Coil100(other).revision not in (file.revision, png.revision)


def test_the_same_pixels_are_the_same_data(reduced, pixels, tmp_path_factory):
    folder = write_png(tmp_path_factory.mktemp("same"), pixels.repeat(4, 2).repeat(4, 3))
    file, png = Coil100(reduced), Coil100(folder)
    assert (png.revision, png.zoo) == (file.revision, file.zoo)
    assert torch.equal(png.test.images, file.test.images)


# What a user reads


def test_it_says_how_to_name_its_folder(tmp_path):
    text = message(lambda: Coil100().test)
    assert "--data" in text and "MANIFOLD_BENCH_DATA" in text and REDUCED in text and "obj1__0.png" in text
    assert "nowhere" in message(lambda: Coil100(tmp_path / "nowhere").test)


def test_an_empty_folder_is_named_with_what_to_put_there(tmp_path):
    (tmp_path / "coil100").mkdir()
    text = message(lambda: Coil100(tmp_path).test)
    assert str(tmp_path / "coil100") in text and REDUCED in text and "obj100__355.png" in text


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-1],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:5000] + b"\xff" * 50 + raw[5050:],
        lambda raw: b"<html>not found</html>",
    ],
)
def test_a_damaged_archive_is_named(reduced, damage):
    path = reduced / REDUCED
    path.write_bytes(damage(path.read_bytes()))
    text = message(lambda: Coil100(reduced).test)
    assert str(path) in text and "damaged" in text and "put the right file there" in text


@pytest.mark.parametrize("content", [{"pictures": np.zeros(3)}, {"images": np.zeros((3, 72, 32, 32, 3), np.uint8)}])
def test_an_archive_of_something_else_is_named(reduced, content):
    np.savez(reduced / REDUCED, **content)
    text = message(lambda: Coil100(reduced).test)
    assert str(reduced / REDUCED) in text and "put the right file there" in text


def test_the_first_missing_view_is_named(views):
    (views / "obj2__355.png").unlink()
    (views / "obj3__0.png").unlink()
    text = message(lambda: Coil100(views).test)
    assert "obj2__355.png" in text and str(views) in text and "put" in text and "obj3" not in text


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:2000], lambda raw: b"<html>not found</html>"])
def test_a_damaged_view_is_named(views, damage):
    path = views / "obj3__45.png"
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(raw))
    text = message(lambda: Coil100(views).test)
    assert str(path) in text and "damaged" in text


def test_a_view_of_another_size_is_named(views):
    path = views / "obj1__5.png"
    path.unlink()
    Image.new("RGB", (64, 32)).save(path)
    text = message(lambda: Coil100(views).test)
    assert str(path) in text and "64×32" in text and "128×128" in text


@pytest.mark.parametrize(
    ("defense", "parameters", "outputs"), [("undefended", {}, 100), ("gmvae", {"latent": 100}, 101)]
)
def test_defenses_take_its_images(defense, parameters, outputs):
    assert answers(defense, Coil100, **parameters).shape == (2, outputs)
