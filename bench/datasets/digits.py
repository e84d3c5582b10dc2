"""The 1,797 handwritten digits of 8×8 pixels that scikit-learn carries: small enough for tests."""

from __future__ import annotations

from dataclasses import dataclass

from sklearn.datasets import load_digits

from manifold_bench.bench.datasets.base import LabelledImages, WholeDataset, as_images


@dataclass(frozen=True)
class Digits(WholeDataset):
    """Small handwritten digits that scikit-learn carries; needs no file.

    It has 500 test images (50 of each class), 200 images for validation and 1,097 for training.
    """

    name = "digits"
    shape = (1, 8, 8)
    num_classes = 10
    revision = "scikit-learn-1797/split-1"
    zoo = "digits"

    test_per_class = 50
    validation_per_class = 20

    @property
    def whole(self) -> LabelledImages:
        raw = load_digits()
        return as_images(raw.images, raw.target, 16.0)
