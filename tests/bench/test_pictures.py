"""What records keep of images is what was judged, however small the perturbation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import manifold_bench as mb
from manifold_bench.bench.report import pictures
from manifold_bench.bench.text import LEVELS

SHAPE = [1, 8, 8]


class Steep(nn.Module):
    """Two classes that differ by a hundredth of a grey level of the mean pixel."""

    def forward(self, images: Tensor) -> Tensor:
        height = (images.flatten(1).mean(1) - 0.5) * 1e4
        return torch.stack([-height, height], dim=1)


@pytest.fixture(scope="module")
def beaten() -> mb.Results:
    """Images of one grey, a quarter of a level on the right side of the boundary."""
    images = torch.full((4, 1, 8, 8), 0.5 + 0.25 / LEVELS)
    return mb.evaluate(Steep(), (images, torch.ones(4, dtype=torch.long)), attacks=["pgd"], eps="0.5/255")


def test_the_stored_image_of_a_success_is_adversarial_even_at_half_a_grey_level(beaten):
    rows = beaten.records[beaten.records["attack"] == "pgd"]
    assert rows["success"].all()
    for image, size in zip(rows["image_adversarial"], rows["linf"], strict=True):
        stored = torch.from_numpy(np.frombuffer(image, np.float32).reshape(1, *SHAPE).copy())
        assert Steep()(stored).argmax(1).item() == 0
        assert 0 < size <= 0.5 / LEVELS * (1 + 1e-5)


def test_a_difference_of_half_a_grey_level_is_shown_with_its_size(beaten):
    row = beaten.records[beaten.records["attack"] == "pgd"].iloc[0]
    images = (pictures.pixels(row[name], SHAPE) for name in ("image_original", "image_adversarial"))
    shown, largest = pictures.difference(*images)
    assert shown.min() == 0 and pictures.size_text(largest) == "± 0.5/255, × 255"


def test_fewer_large_images_are_kept_than_small_ones():
    images = torch.full((9, 3, 224, 224), 0.5)
    result = mb.evaluate(Steep(), (images, torch.ones(9, dtype=torch.long)), attacks=["noise"], eps="1/255")
    for _, rows in result.records.groupby("attack"):
        assert rows["image_adversarial"].notna().tolist() == [True] * 3 + [False] * 6


@pytest.mark.parametrize(
    ("largest", "text"),
    [
        (0, "± 0"),
        (8 / 255, "± 8/255, × 16"),
        (0.3, "± 0.3, × 1.7"),
        (1, "± 1, × 0.5"),
        (0.01 / 255, "± 0.01/255, × 12750"),
    ],
)
def test_sizes_of_differences_in_words(largest, text):
    assert pictures.size_text(largest) == text


def test_levels_of_older_records_are_shown_as_they_were():
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert (pictures.levels(pictures.pixels(levels.tobytes(), SHAPE)) == levels).all()
    images = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.array_equal(pictures.pixels(images.tobytes(), SHAPE), images)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, -3, 1e30])
def test_an_image_that_cannot_be_is_shown_without_an_error(wrong):
    raw = np.full(64, wrong, dtype=np.float32).tobytes()
    assert pictures.levels(pictures.pixels(raw, SHAPE)).shape == (8, 8)
