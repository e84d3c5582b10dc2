"""Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747): images of clothes in place of digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from manifold_bench.bench.datasets.files import data_folders
from manifold_bench.bench.datasets.idx import IdxFiles

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where the package `dataset-fashion-mnist` of Debian and Ubuntu installs the files."""


@dataclass(frozen=True)
class FashionMnist(IdxFiles):
    """Photographs of clothes in the format of MNIST, in place of its digits.

    It has the official 10,000 test images. Of the other images 5,000, 500 of each class, are for validation.
    """

    paper = "xiao2017"
    name = "fashion-mnist"
    revision = "idx-70000/split-1"
    zoo = "fashion-mnist"
    checksums: ClassVar = {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    }

    @property
    def folders(self) -> list[Path]:
        installed = [DEBIAN] if DEBIAN.is_dir() else []
        if self.data is None and installed:
            return installed
        files = "train-images-idx3-ubyte[.gz] and the three others; Debian's dataset-fashion-mnist is found by itself"
        return [*data_folders(self.data, "fashion-mnist", files, "fashion-mnist"), *installed]
