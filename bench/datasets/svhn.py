"""SVHN (Netzer et al. 2011), cropped digits: 32×32 colour images from the published MATLAB files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.io import loadmat

from manifold_bench.bench.datasets.base import PublishedSplit
from manifold_bench.bench.datasets.files import checked_bytes, data_folders, existing_files

FILES = {
    "train_32x32.mat": "sha256:435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    "test_32x32.mat": "sha256:cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
}


@dataclass(frozen=True)
class Svhn(PublishedSplit):
    """House numbers in photographs, cropped to one digit each.

    It has the official 26,032 test images. Of the 73,257 training images, 5,000 (500 of each class) are for validation;
    the others take 0.9 GB. The 531,131 easier images of extra_32x32.mat are not used.
    """

    paper = "netzer2011"
    name = "svhn"
    shape = (3, 32, 32)
    num_classes = 10
    revision = "cropped-99289/split-1"
    zoo = "svhn"

    @property
    def _folders(self) -> list[Path]:
        return data_folders(self.data, "svhn", " and ".join(FILES), "svhn")

    @property
    def files(self) -> tuple[Path, ...]:
        return existing_files(self._folders, *FILES)

    def published(self, part: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
        name = f"{part}_32x32.mat"
        variables = loadmat(io.BytesIO(checked_bytes(self._folders, "svhn", name, FILES[name])))
        # X is [row, column, RGB, image]; y [image, 1] says 10 for the digit 0
        return variables["X"].transpose(3, 0, 1, 2), variables["y"][:, 0] % 10
