"""Data that a program hands over: tensors or arrays, or a folder of images by class."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.errors import InputError
from manifold_bench.defenses.base import LabelledImages

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Endings of the files that a folder of images is read from."""


@dataclass(frozen=True)
class Given(Dataset):
    """Images to attack, and none to train on: every image is a test image."""

    images: ClassVar[LabelledImages]
    test_only = True
    zoo = "given"

    @property
    def test(self) -> LabelledImages:
        return self.images

    @property
    def train(self) -> LabelledImages:
        return LabelledImages(self.images.images[:0], self.images.labels[:0])

    validation = train


def dataset_of(name: str, images: LabelledImages, num_classes: int) -> type[Given]:
    """Return a data set of these images, as a class that the planner can use."""
    content = images.images.numpy().tobytes() + images.labels.numpy().tobytes()
    fields = {
        "name": name,
        "shape": tuple(images.images.shape[1:]),
        "num_classes": num_classes,
        "revision": hashlib.sha256(content).hexdigest(),
        "images": images,
        "__module__": __name__,
    }
    return type("Given", (Given,), fields)


def labelled_images(data: Any) -> LabelledImages:
    """Return images with their labels from a pair of tensors or arrays, or from a folder (`read_folder`).

    Images: [N,C,H,W], real numbers in [0,1]; labels: [N], integers ≥ 0. Raises InputError.
    """
    if isinstance(data, (str, Path)):
        return read_folder(Path(data))[0]
    try:
        images, labels = data
        images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    except (TypeError, ValueError) as error:
        raise InputError(
            "data: give the name of a data set, a folder of images, or a pair (images [N,C,H,W] in [0,1], labels [N])"
        ) from error
    if images.ndim != 4 or not len(images) or not images.dtype.is_floating_point:
        raise InputError(f"data: images of shape {tuple(images.shape)} and type {images.dtype}; give floats [N,C,H,W]")
    if not bool(images.isfinite().all()) or images.min() < 0 or images.max() > 1:
        raise InputError(
            f"data: images from {images.min():g} to {images.max():g}; they have to lie in [0,1]. Give normalize=(mean, "
            "std) where the model takes normalized images"
        )
    whole = not labels.dtype.is_floating_point and labels.dtype != torch.bool
    if labels.shape != images.shape[:1] or not whole or labels.min() < 0:
        raise InputError(f"data: labels of shape {tuple(labels.shape)} and type {labels.dtype}; give integers ≥ 0 [N]")
    return LabelledImages(images.detach().cpu().float().contiguous(), labels.detach().cpu().long())


def read_folder(folder: Path) -> tuple[LabelledImages, list[str]]:
    """Return the images of a folder that holds one folder for each class, and the names of the classes in order.

    All images need the same size; those with one channel stay so where all have one. Raises InputError.
    """
    from PIL import Image, UnidentifiedImageError

    if not folder.is_dir():
        raise InputError(f"data: {folder} is neither a known data set nor a folder")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(path, label) for label, name in enumerate(names) for path in sorted((folder / name).iterdir())]
    files = [(path, label) for path, label in files if path.suffix.lower() in PICTURES]
    if not files:
        raise InputError(f"data: {folder} holds no images; give a folder with a folder of images for each class")
    pictures = []
    for path, _ in files:
        try:
            with Image.open(path) as picture:
                pictures.append(picture.convert("L" if picture.mode in ("1", "L", "I;16") else "RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"data: {path} cannot be read as an image") from error
        if pictures[-1].size != pictures[0].size:
            raise InputError(f"data: {path} has another size than {files[0][0]}; all images need the same size")
    mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
    pixels = np.stack([np.asarray(picture.convert(mode), np.float32) / 255 for picture in pictures])
    images = torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1).transpose(0, 3, 1, 2).copy())
    return LabelledImages(images, torch.tensor([label for _, label in files])), names
