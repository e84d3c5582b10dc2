"""Data sets that are published as four IDX files: images and labels, for training and for testing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from manifold_bench.bench.datasets.base import PublishedSplit
from manifold_bench.bench.datasets.files import checked_bytes, existing_files


class IdxFiles(PublishedSplit):
    """The base of data sets with 28×28 grey images of ten classes, 60,000 for training and 10,000 for testing."""

    shape = (1, 28, 28)
    num_classes = 10
    checksums: ClassVar[dict[str, str]]
    """sha256 of each of the four files, uncompressed, by its name without `.gz`."""

    @property
    @abstractmethod
    def folders(self) -> list[Path]:
        """The folders in which the files are searched, in this order."""

    @property
    def files(self) -> tuple[Path, ...]:
        return existing_files(self.folders, *(f"{name}.gz" for name in self.checksums), *self.checksums)

    def published(self, part: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
        prefix = "t10k" if part == "test" else "train"
        images, labels = (f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
        return self.read(images), self.read(labels)

    def read(self, name: str) -> np.ndarray:
        """Return the content of an IDX file as an array of uint8, from `name` or `name`.gz.

        Raises InputError if its checksum is not that of the published file.
        """
        return array_of(checked_bytes(self.folders, self.name, name, f"sha256:{self.checksums[name]}"))


def array_of(raw: bytes) -> np.ndarray:
    """Return the uint8 array in an IDX file: two zero bytes, a type, number and sizes of the dimensions, the data."""
    dimensions = raw[3]
    shape: Sequence[int] = np.frombuffer(raw, ">u4", count=dimensions, offset=4).tolist()
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
