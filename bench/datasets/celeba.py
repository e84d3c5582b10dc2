"""CelebA (Liu et al. 2015), aligned and cropped faces with the attribute Male: the gender task of Ilyas et al. 2017."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from manifold_bench.bench.datasets.base import LabelledImages, LazySplits, Split, split_rows
from manifold_bench.bench.datasets.files import checked_bytes, data_folders, existing_files, read_image

LISTS = {
    "list_attr_celeba.txt": "md5:75e246fa4810816ffd6ee81facbd244c",
    "list_eval_partition.txt": "md5:d32c9cbf5e040fd4025c592c306e6668",
}
FOLDER = "img_align_celeba"
SIZE = (178, 218)
CROP = (35, 55, 143, 163)
"""Left, top, right and bottom of the central 108×108 pixels."""


def face(path: Path) -> np.ndarray:
    """Return the central 108×108 pixels of an aligned face at 64×64 (bilinear, area-weighted): [64,64,3] uint8.

    The widely used DCGAN code does the same. Ilyas et al. do not describe theirs.
    """
    image = read_image(path, "celeba", SIZE)
    return np.asarray(image.crop(CROP).resize((64, 64), Image.Resampling.BILINEAR))


def faces(paths: list[Path]) -> torch.Tensor:
    """Return these images as [N,3,64,64] float32 in [0,1], 49 kB each; they are decoded in threads."""
    images = np.empty((len(paths), 3, 64, 64), np.float32)

    def decode(row: int) -> None:
        images[row] = face(paths[row]).transpose(2, 0, 1) / np.float32(255)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(decode, range(len(paths))):
            pass
    return torch.from_numpy(images)


@dataclass(frozen=True)
class CelebA(LazySplits):
    """Photographs of faces; the class is the attribute Male.

    It has balanced random choices from the published partition: 2,000 test images, 1,000 for validation and 40,000 for
    training.

    The label is 1 if the attribute Male is 1, else 0. A split is decoded when it is first used; the three take 0.1,
    0.05 and 2 GB (all 202,599 images would take 10 GB as float32). JPEG decoders may differ in a pixel's last bit,
    which the records' `input_sha256` shows.
    """

    paper = "liu2015"
    name = "celeba"
    shape = (3, 64, 64)
    num_classes = 2
    revision = "align-108-64/split-1"
    zoo = "celeba"

    per_class: ClassVar[dict[Split, int]] = {"train": 20_000, "validation": 500, "test": 1_000}
    """Number of images of each class in the splits, in the order of the published numbers of the splits."""

    @cached_property
    def _folders(self) -> list[Path]:
        return data_folders(self.data, "celeba", f"{FOLDER}/, {' and '.join(LISTS)}", "celeba")

    @property
    def files(self) -> tuple[Path, ...]:
        return existing_files(self._folders, *LISTS, FOLDER)

    @cached_property
    def _listed(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """File names, labels, and splits (0 train, 1 validation, 2 test) of all images."""
        attributes, partition = (
            checked_bytes(self._folders, "celeba", name, checksum).decode().splitlines()
            for name, checksum in LISTS.items()
        )
        column = 1 + attributes[1].split().index("Male")  # the first line is the number of images, the second has names
        male = {fields[0]: fields[column] == "1" for fields in map(str.split, attributes[2:])}
        parts = dict(map(str.split, partition))
        return list(parts), np.array([male[name] for name in parts], np.int64), np.array(list(parts.values()), np.int64)

    def split(self, name: Split) -> LabelledImages:
        names, labels, parts = self._listed
        own = np.flatnonzero(parts == list(self.per_class).index(name))
        rows = own[split_rows(labels[own], self.per_class[name], seed=1)[0]]
        folder = next((f for f in self._folders if (f / FOLDER).is_dir()), self._folders[0]) / FOLDER
        return LabelledImages(faces([folder / names[row] for row in rows]), torch.from_numpy(labels[rows]))
