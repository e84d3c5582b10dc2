"""The base classes of data sets."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from manifold_bench.defenses.base import LabelledImages

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Dataset(ABC):
    """Images with labels in three splits. Test images are never used for training or calibration.

    data: folder of data files (`--data`), for data sets that need files; None: none was given.
    """

    name: ClassVar[str]
    shape: ClassVar[tuple[int, int, int]]
    num_classes: ClassVar[int]
    revision: ClassVar[str]
    """A text that is different whenever an image, a label, a split or the order of the test images is different."""
    test_only: ClassVar[bool] = False
    """Whether it has only test images, so that nothing can be trained or calibrated on it."""
    zoo: ClassVar[str]
    """The name of the zoo's weights for these data; data sets of the same kind of image share it."""

    seen: ClassVar[str] = ""
    """A remark for models of others that may have been trained on its test images."""

    paper: ClassVar[str] = ""
    """The key of its paper in `bench/references.bib`, or a citation as text."""

    data: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files and folders of the data folder that this data set reads; they are copied to other machines."""
        return ()

    @property
    @abstractmethod
    def test(self) -> LabelledImages: ...

    @property
    @abstractmethod
    def train(self) -> LabelledImages: ...

    @property
    @abstractmethod
    def validation(self) -> LabelledImages: ...

    def chosen(self, n: int | None) -> np.ndarray:
        """Return the indices of the first n test images in a fixed random order; None: of all.

        A smaller choice is part of every larger one, whatever the seed of the run, so that runs have inputs in common.
        """
        return _order(len(self.test))[:n]

    def calibration(self, n: int) -> np.ndarray:
        """Return the indices of the first n validation images in a fixed random order, as `chosen` for test images."""
        return _order(len(self.validation))[:n]


def _order(n: int) -> np.ndarray:
    return np.random.default_rng(20_190_125).permutation(n)


class OnlyTestImages(Dataset):
    """The base of data sets that have only test images."""

    test_only = True

    @property
    def train(self) -> LabelledImages:
        return LabelledImages(self.test.images[:0], self.test.labels[:0])

    validation = train


class LazySplits(Dataset):
    """The base of data sets whose splits are loaded one by one, each when it is first used."""

    @abstractmethod
    def split(self, name: Split) -> LabelledImages:
        """Return the images and labels of one split."""

    @cached_property
    def test(self) -> LabelledImages:  # type: ignore[override]
        return self.split("test")

    @cached_property
    def train(self) -> LabelledImages:  # type: ignore[override]
        return self.split("train")

    @cached_property
    def validation(self) -> LabelledImages:  # type: ignore[override]
        return self.split("validation")


class PublishedSplit(LazySplits):
    """The base of data sets with published test images; 500 of each class of the other images are for validation."""

    @abstractmethod
    def published(self, part: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels [N,H,W] or [N,H,W,C] from 0 to 255, and labels [N]."""

    def split(self, name: Split) -> LabelledImages:
        pixels, labels = self.published("test" if name == "test" else "train")
        if name != "test":
            validation, train = split_rows(labels, 500, seed=1)
            rows = validation if name == "validation" else train
            pixels, labels = pixels[rows], labels[rows]
        return as_images(pixels, labels, 255.0)


class WholeDataset(LazySplits):
    """The base of data sets without published splits: fixed random images of each class are for test and validation."""

    test_per_class: ClassVar[int]
    validation_per_class: ClassVar[int]

    @property
    @abstractmethod
    def whole(self) -> LabelledImages:
        """All images with their labels."""

    def split(self, name: Split) -> LabelledImages:
        whole = self.whole
        labels = whole.labels.numpy()
        test, rest = split_rows(labels, self.test_per_class, seed=1)
        validation, train = split_rows(labels[rest], self.validation_per_class, seed=2)
        return select(whole, {"test": test, "validation": rest[validation], "train": rest[train]}[name])


def as_images(pixels: np.ndarray, labels: np.ndarray, largest: float) -> LabelledImages:
    """Return LabelledImages for pixels [N,H,W] or [N,H,W,C] from 0 to `largest`, and labels [N]."""
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32))
    return LabelledImages(images / largest, torch.from_numpy(np.asarray(labels, dtype=np.int64)))


def split_rows(labels: np.ndarray, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a random choice of `per_class` images of every class, and the other rows; both sorted."""
    random = np.random.default_rng(seed)
    chosen = np.concatenate([random.permutation(np.flatnonzero(labels == c))[:per_class] for c in np.unique(labels)])
    return np.sort(chosen), np.setdiff1d(np.arange(len(labels)), chosen)


def select(data: LabelledImages, rows: np.ndarray) -> LabelledImages:
    """Return the images and labels at those rows."""
    index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    return LabelledImages(data.images[index], data.labels[index])


def image_hashes(images: torch.Tensor) -> list[str]:
    """Return the sha256 of the float32 bytes of each image [N,C,H,W]."""
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images.contiguous().numpy()]
