"""CIFAR-10 (Krizhevsky 2009): 32×32 colour images from the published binary version, which needs no unpickling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from manifold_bench.bench.datasets.base import PublishedSplit
from manifold_bench.bench.datasets.files import checked_bytes, data_folders, existing_files

FILES = {
    "data_batch_1.bin": "md5:5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "md5:5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "md5:942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "md5:ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "md5:53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "md5:803d5f7f4d78ea53de84dbe85f74fb6d",
}
*TRAIN, TEST = FILES


@dataclass(frozen=True)
class Cifar10(PublishedSplit):
    """Photographs of ten kinds of animals and vehicles.

    It has the official 10,000 test images. Of the 50,000 training images, 5,000 (500 of each class) are for validation;
    the others take 0.6 GB.
    """

    paper = "krizhevsky2009"
    name = "cifar10"
    shape = (3, 32, 32)
    num_classes = 10
    revision = "binary-60000/split-1"
    zoo = "cifar10"

    @cached_property
    def _folders(self) -> list[Path]:
        return data_folders(
            self.data, "cifar10", "data_batch_1.bin … test_batch.bin", "cifar10", "cifar-10-batches-bin"
        )

    @property
    def files(self) -> tuple[Path, ...]:
        return existing_files(self._folders, *FILES)

    def published(self, part: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
        names = TRAIN if part == "train" else [TEST]
        raw = b"".join(checked_bytes(self._folders, "cifar10", name, FILES[name]) for name in names)
        rows = np.frombuffer(raw, np.uint8).reshape(-1, 1 + 3 * 32 * 32)  # a label, then [RGB, row, column]
        return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]
