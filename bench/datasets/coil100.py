"""COIL-100 (Nene, Nayar and Murase 1996): 100 objects on a turntable, 72 views of each, as colour images of 32×32."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from manifold_bench.bench.datasets.base import LabelledImages, WholeDataset, as_images
from manifold_bench.bench.datasets.files import data_folders, read_image
from manifold_bench.bench.errors import InputError

OBJECTS, VIEWS = 100, 72

REDUCED = "coil100_32.npz"
"""`images`[object, view, row, column, RGB], uint8: the 128×128 images reduced to 32×32, by whom and how is unknown."""
REDUCED_SHA256 = "c583eb9508fec21c7d75ec77d9d6304b67b3104c9a1dc116b344309b311c94b6"
"""sha256 of the bytes of that array (the archive around it may differ)."""


def read_reduced(path: Path) -> np.ndarray:
    """The array of `coil100_32.npz`: [object, view, row, column, RGB] uint8, checked against its sha256."""
    try:
        with np.load(path) as archive:
            pixels = archive["images"]
    except Exception as error:  # a damaged archive raises whatever numpy, zipfile and zlib run into
        reason = " ".join(str(error).split())
        raise InputError(f"data set 'coil100': {path} is damaged ({reason}); put the right file there") from error
    found = sha256(pixels)
    if found != REDUCED_SHA256:
        raise InputError(
            f"data set 'coil100': {path} is damaged or another file: the sha256 of its array is {found[:12]}…, "
            f"not {REDUCED_SHA256[:12]}…; put the right file there"
        )
    return pixels.reshape(OBJECTS, VIEWS, 32, 32, 3)


def read_views(folder: Path) -> np.ndarray:
    """The published 128×128 PNG files obj1__0.png … obj100__355.png as [object, view, row, column, RGB] uint8.

    View v is the one at 5·v degrees. Each pixel is the mean of a block of 4×4, rounded to the nearest integer.
    """
    pixels = np.empty((OBJECTS, VIEWS, 32, 32, 3), np.uint8)
    for number in range(OBJECTS):
        for view in range(VIEWS):
            path = folder / f"obj{number + 1}__{5 * view}.png"
            pixels[number, view] = np.asarray(read_image(path, "coil100", (128, 128)).reduce(4))
    return pixels


def sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


@dataclass(frozen=True)
class Coil100(WholeDataset):
    """Photographs of 100 objects on a turntable.

    18 test views of each object, 6 for validation, 48 to train on; the label is the object's number less one.

    Reads `coil100_32.npz` or, where there is none, the folder of published PNG files. The paper's split is unpublished;
    ours is in docs/coil100_split.txt. Views are numbered as in the file, or by angle; neighbours are 5 degrees apart,
    so a test view has views much like it in the training set.
    """

    paper = "nene1996"
    name = "coil100"
    shape = (3, 32, 32)
    num_classes = 100

    test_per_class = 18
    validation_per_class = 6

    @property
    def files(self) -> tuple[Path, ...]:
        return (self._source,)

    @cached_property
    def _source(self) -> Path:
        """The file of the reduced images, or the folder of the published ones."""
        contents = f"{REDUCED}, or the published obj1__0.png … obj{OBJECTS}__355.png"
        folders = data_folders(self.data, "coil100", contents, "coil100", "coil-100")
        for folder in folders:
            if (folder / REDUCED).is_file():
                return folder / REDUCED
        for folder in folders:
            if next(folder.glob("obj*__*.png"), None):
                return folder
        raise InputError(f"data set 'coil100': nothing of it is in {folders[0]}; put there {contents}")

    @cached_property
    def _pixels(self) -> np.ndarray:
        """[object, view, row, column, RGB] uint8."""
        return read_reduced(self._source) if self._source.name == REDUCED else read_views(self._source)

    @cached_property
    def _content(self) -> str:
        return sha256(self._pixels)

    @property
    def revision(self) -> str:  # type: ignore[override]
        """Names the pixels: PNG files reduced here are other data than the reduced file, unless every bit agrees."""
        return f"coil100-{self._content[:12]}/split-1"

    @property
    def zoo(self) -> str:  # type: ignore[override]
        """The zoo's weights are trained on the reduced file; in other data its test views could be among the training
        views, so they don't count there."""
        return "coil100" if self._content == REDUCED_SHA256 else "coil100-png"

    @property
    def whole(self) -> LabelledImages:
        """All 7,200, by object and view."""
        return as_images(self._pixels.reshape(-1, 32, 32, 3), np.repeat(np.arange(OBJECTS), VIEWS), 255.0)
