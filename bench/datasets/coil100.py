"""COIL-100 (Nene, Nayar and Murase 1996): 100 objects on a turntable, 72 views of each, as colour images of 32×32."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from manifold_bench.bench.datasets.base import LabelledImages, WholeDataset, as_images
from manifold_bench.bench.datasets.files import data_folders, read_image
from manifold_bench.bench.errors import InputError, MissingData
from manifold_bench.defenses.errors import message_of
from manifold_bench.defenses.files import checked_file

OBJECTS, VIEWS = 100, 72

REDUCED = "coil100_32.npz"
"""A file with `images`[object, view, row, column, RGB], uint8: the images reduced to 32×32; their author is unknown."""
REDUCED_SHA256 = "c583eb9508fec21c7d75ec77d9d6304b67b3104c9a1dc116b344309b311c94b6"
"""sha256 of the bytes of that array (the archive around it may differ)."""


def read_reduced(path: Path) -> np.ndarray:
    """Return the array of `coil100_32.npz`, [object, view, row, column, RGB] uint8; raises InputError if damaged."""
    try:
        with np.load(checked_file(path)) as archive:
            pixels = archive["images"]
    except Exception as error:  # for a damaged archive numpy, zipfile and zlib raise exceptions of any kind
        raise InputError(
            f"data set 'coil100': {path} is damaged ({message_of(error)}); put the right file there"
        ) from error
    found = sha256(pixels)
    if found != REDUCED_SHA256:
        raise InputError(
            f"data set 'coil100': {path} is damaged or another file: the sha256 of its array is {found[:12]}…, "
            f"not {REDUCED_SHA256[:12]}…; put the right file there"
        )
    return pixels.reshape(OBJECTS, VIEWS, 32, 32, 3)


def read_views(folder: Path) -> np.ndarray:
    """Return the published PNG files obj1__0.png … obj100__355.png as [object, view, row, column, RGB] uint8, 32×32.

    View v is at 5·v degrees. Each pixel is the mean of a block of 4×4 pixels, rounded to the nearest integer. Raises
    InputError.
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

    Of each object 18 views are for testing, 6 for validation and 48 for training; the label is the object's number
    minus 1.

    It reads `coil100_32.npz`, or else the folder of published PNG files. The paper's split is not published; this one
    is in docs/coil100_split.txt. Views are numbered as in the file, or by angle. Neighbouring views are 5 degrees
    apart, so that a test view has similar ones in the training set.
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
        """The file of the reduced images, or else the folder of the published ones; raises MissingData."""
        contents = f"{REDUCED}, or the published obj1__0.png … obj{OBJECTS}__355.png"
        folders = data_folders(self.data, "coil100", contents, "coil100", "coil-100")
        for folder in folders:
            if (folder / REDUCED).exists():
                return folder / REDUCED
        for folder in folders:
            if next(folder.glob("obj*__*.png"), None):
                return folder
        raise MissingData(f"data set 'coil100': its files are not in {folders[0]}; put there {contents}")

    @cached_property
    def _pixels(self) -> np.ndarray:
        """[object, view, row, column, RGB] uint8."""
        return read_reduced(self._source) if self._source.name == REDUCED else read_views(self._source)

    @cached_property
    def _content(self) -> str:
        return sha256(self._pixels)

    @property
    def revision(self) -> str:  # type: ignore[override]
        """Revision with a hash of the pixels, because PNG files reduced here may differ from the reduced file."""
        return f"coil100-{self._content[:12]}/split-1"

    @property
    def zoo(self) -> str:  # type: ignore[override]
        """Name of the zoo's weights, which are trained on the reduced file; PNG files have no weights in the zoo.

        In other files the test views could be among the training views of these weights.
        """
        return "coil100" if self._content == REDUCED_SHA256 else "coil100-png"

    @property
    def whole(self) -> LabelledImages:
        """All 7,200 images, by object and view."""
        return as_images(self._pixels.reshape(-1, 32, 32, 3), np.repeat(np.arange(OBJECTS), VIEWS), 255.0)
