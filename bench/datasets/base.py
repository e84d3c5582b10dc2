"""The contract of a data set."""

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
    """Images with labels in three splits. Nothing learnt or calibrated ever sees `test`.

    data: the folder of the user's data files (`--data`), for data sets that need files.
    """

    name: ClassVar[str]
    shape: ClassVar[tuple[int, int, int]]
    num_classes: ClassVar[int]
    revision: ClassVar[str]
    """Changes whenever an image, a label, a split or the order of the test images does."""
    test_only: ClassVar[bool] = False
    """Whether it has test images alone, so that nothing can be trained or calibrated on it."""
    zoo: ClassVar[str]
    """The name under which the zoo keeps weights for this data: data sets of the same kind of image share them."""

    paper: ClassVar[str] = ""
    """The key of its paper in `bench/references.bib`, or a citation as text."""

    data: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """What of the data folder it is made of, files and whole folders, for machines that don't have them."""
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
        """Indices of the first n test images (all, where None) in a fixed shuffled order.

        A smaller choice is part of every larger one, whatever the seed of the run: runs stay comparable by input.
        """
        return _order(len(self.test))[:n]

    def calibration(self, n: int) -> np.ndarray:
        """Indices of the first n validation images in a fixed shuffled order, as `chosen` does for test images."""
        return _order(len(self.validation))[:n]


def _order(n: int) -> np.ndarray:
    return np.random.default_rng(20_190_125).permutation(n)


class LazySplits(Dataset):
    """A data set whose splits are made one by one, each when it is first needed."""

    @abstractmethod
    def split(self, name: Split) -> LabelledImages:
        """The images and labels of one split."""

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
    """A labelled set with published test images; 500 of each class of the other images are for validation."""

    @abstractmethod
    def published(self, part: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [N,H,W] or [N,H,W,C] from 0 to 255, and labels [N]."""

    def split(self, name: Split) -> LabelledImages:
        pixels, labels = self.published("test" if name == "test" else "train")
        if name != "test":
            validation, train = split_rows(labels, 500, seed=1)
            rows = validation if name == "validation" else train
            pixels, labels = pixels[rows], labels[rows]
        return as_images(pixels, labels, 255.0)


class WholeDataset(LazySplits):
    """One labelled set without published splits: a fixed random choice of every class for test and validation."""

    test_per_class: ClassVar[int]
    validation_per_class: ClassVar[int]

    @property
    @abstractmethod
    def whole(self) -> LabelledImages:
        """Every image."""

    def split(self, name: Split) -> LabelledImages:
        whole = self.whole
        labels = whole.labels.numpy()
        test, rest = split_rows(labels, self.test_per_class, seed=1)
        validation, train = split_rows(labels[rest], self.validation_per_class, seed=2)
        return select(whole, {"test": test, "validation": rest[validation], "train": rest[train]}[name])


def as_images(pixels: np.ndarray, labels: np.ndarray, largest: float) -> LabelledImages:
    """pixels [N,H,W] or [N,H,W,C] from 0 to `largest`, labels [N] → LabelledImages."""
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32))
    return LabelledImages(images / largest, torch.from_numpy(np.asarray(labels, dtype=np.int64)))


def split_rows(labels: np.ndarray, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a random choice with that many of every class, and the other rows; both sorted."""
    random = np.random.default_rng(seed)
    chosen = np.concatenate([random.permutation(np.flatnonzero(labels == c))[:per_class] for c in np.unique(labels)])
    return np.sort(chosen), np.setdiff1d(np.arange(len(labels)), chosen)


def select(data: LabelledImages, rows: np.ndarray) -> LabelledImages:
    """Those rows of it."""
    index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    return LabelledImages(data.images[index], data.labels[index])


def image_hashes(images: torch.Tensor) -> list[str]:
    """sha256 of each image [N,C,H,W] as it enters a defense (float32 bytes)."""
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images.contiguous().numpy()]
