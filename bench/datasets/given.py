"""Data sets made from a program's own data: tensors or arrays, a data set of torch, or a folder of images by class."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from math import isqrt
from pathlib import Path
from types import NoneType
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)
from torch.utils.data import Dataset as TorchDataset

from manifold_bench.bench.datasets.base import OnlyTestImages
from manifold_bench.bench.datasets.files import grey_or_rgb
from manifold_bench.bench.errors import InputError
from manifold_bench.defenses.base import LabelledImages
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.files import checked_file

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Endings of the files that are read from a folder of images."""

OTHER_PICTURES = (
    *(".apng", ".avif", ".avifs", ".dib", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpf"),
    *(".jpx", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff"),
)
"""Endings of other files that hold a picture."""

INTEGERS = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
"""Types of labels."""


@dataclass(frozen=True)
class Given(OnlyTestImages):
    """A data set of test images alone, made from a program's own data."""

    images: ClassVar[LabelledImages]
    zoo = "given"

    @property
    def test(self) -> LabelledImages:
        return self.images


def dataset_of(name: str, images: LabelledImages, num_classes: int) -> type[Given]:
    """Return a data set with these images, as a class that can be planned."""
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


USAGE = (
    "data: give the name of a data set, a folder of images, a torch Dataset, or a pair (images [N,C,H,W] in [0,1], "
    "labels [N])"
)


def labelled_images(data: object) -> LabelledImages:
    """Return images with their labels from the forms in which programs have them.

    data: a pair of tensors, arrays or lists, images [N,C,H,W] in [0,1] and labels [N]; a `torch.utils.data.Dataset` of
    such pairs, or of pairs with a picture of PIL, or a `DataLoader` of one, read in the order of the data set; or a
    folder (`read_folder`). Raises InputError, in one line that says what to write.
    """
    return images_and_classes(data)[0]


def images_and_classes(data: object) -> tuple[LabelledImages, int | None]:
    """Return the images of `labelled_images`, and the number of their classes where a folder says it."""
    if isinstance(data, (str, Path)):
        images, names = read_folder(Path(data))
        return images, len(names)
    return _of_a_program(data), None


def _of_a_program(data: object) -> LabelledImages:
    """Return the images of `labelled_images` where they are no folder."""
    if isinstance(data, LabelledImages):
        data = (data.images, data.labels)
    if isinstance(data, DataLoader):
        data = _of_loader(data)
    if isinstance(data, TorchDataset):
        data = _collected(data)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise InputError(USAGE)
    images, labels = _as_tensor("images", data[0]), _as_tensor("labels", data[1])
    if images.is_floating_point():
        images = images.float()
    if labels.dtype in INTEGERS:
        kind, labels = labels.dtype, labels.long()
        if kind == torch.uint64 and bool((labels < 0).any()):  # larger ones have wrapped around
            raise InputError(
                f"data: labels above {torch.iinfo(torch.int64).max}; give the numbers of the classes from 0 on"
            )
    if fault := _fault_of_images(images) or _fault_of_labels(labels, len(images)):
        raise InputError(f"data: {fault}")
    return LabelledImages(images.contiguous(), labels)


def _of_loader(loader: DataLoader[tuple[object, object]]) -> TorchDataset[tuple[object, object]]:
    """Return the data set of a loader; raises InputError for a loader that chooses among its items or changes them."""
    sampler, batches = loader.sampler, loader.batch_sampler
    usual = type(batches) in (BatchSampler, NoneType)
    whole = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    )
    if not isinstance(loader.dataset, IterableDataset) and not (whole and usual):
        own = sampler if usual else batches
        raise InputError(
            f"data: the DataLoader chooses its images by a {type(own).__name__}; give the chosen ones as "
            "torch.utils.data.Subset(loader.dataset, indices)"
        )
    if loader.collate_fn not in (default_collate, default_convert):
        raise InputError(
            "data: the DataLoader has a collate_fn of its own, which may change images or labels; give these as "
            "tensors, or loader.dataset if they are the same without it"
        )
    return loader.dataset


def _collected(data: TorchDataset[tuple[object, object]]) -> tuple[Tensor, list[object]]:
    """Return the images and labels of a data set of torch, in its order; raises InputError."""
    try:
        size = len(data)  # type: ignore[arg-type]
        items = [data[number] for number in range(size)]
        images, labels = [_picture(item[0]) for item in items], [item[1] for item in items]
    except (TypeError, IndexError, KeyError, NotImplementedError) as error:
        raise InputError(
            "data: the torch Dataset has to have a length and items (image, label); else collect its images and labels "
            f"in tensors ({one_line(error)})"
        ) from error
    if not items:
        raise InputError("data: the torch Dataset is empty; give one with at least one image")
    return _as_tensor("images", images), labels


def _picture(image: object) -> Tensor:
    """Return an image of a data set of torch: a picture of PIL as floats [C,H,W], tensors and arrays as they are."""
    if isinstance(image, Image.Image):
        pixels = np.asarray(grey_or_rgb(image, "data: a picture of the torch Dataset"), np.float32) / 255
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy())
    return _as_tensor("images", image)


def _as_tensor(what: str, value: object) -> Tensor:
    """Return a tensor, array, column of pandas or list as a tensor on the CPU; raises InputError. what: its name."""
    if isinstance(value, Tensor) and value.layout != torch.strided:
        raise InputError(f"data: {what} are a sparse tensor; give {what}.to_dense()")
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"data: {what} are a masked array; give {what}.filled(value)")
    if isinstance(value, Tensor):
        return value.detach().cpu().as_subclass(Tensor)  # that of a subclass may do anything later
    try:
        if isinstance(value, (list, tuple)) and any(isinstance(one, Tensor) for one in value):
            return torch.stack([torch.as_tensor(one).detach().cpu() for one in value])
        array = np.array(value)  # a copy, because torch cannot share read-only memory
    except (ValueError, RuntimeError) as error:
        raise InputError(f"data: {what} of different shapes; give all the same shape ({one_line(error)})") from error
    if array.dtype.kind not in "buif":
        advice = "; numpy.unique(labels, return_inverse=True)[1] are numbers" if what == "labels" else ""
        raise InputError(f"data: {what} of type {array.dtype}; give numbers{advice}")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))  # IDX files have the other order


def _fault_of_images(images: Tensor) -> str | None:
    """Return what is wrong with images, and what to write; None if they are floats [N,C,H,W] in [0,1]."""
    shape = tuple(images.shape)
    found = f"images of shape {shape}"
    if not images.numel():
        return f"{found}; give at least one image"
    if images.ndim == 3:
        return f"{found} have no channels; give images[:, None], of shape [N,1,H,W]"
    if images.ndim == 2:
        channels = next((c for c in (1, 3) if shape[1] % c == 0 and isqrt(shape[1] // c) ** 2 == shape[1] // c), None)
        side = isqrt(shape[1] // channels) if channels else 0
        sizes = f"{channels}, {side}, {side}" if channels else "C, H, W"
        return f"{found} are flat; give images.reshape(-1, {sizes})"
    if images.ndim != 4:
        return f"{found}; give [N,C,H,W]"
    if shape[1] not in (1, 3) and shape[3] in (1, 3, 4):
        permuted = "images.permute(0, 3, 1, 2) of a tensor, images.transpose(0, 3, 1, 2) of an array"
        return f"{found} look like [N,H,W,C]; give [N,C,H,W]: {permuted}"
    if not images.dtype.is_floating_point:
        return f"images of type {images.dtype}; give floats in [0,1], as in images / 255"
    if not bool(images.isfinite().all()):
        return "images with NaN or infinite values; give finite ones in [0,1]"
    low, high = (float(value) for value in images.aminmax())
    if low < 0:
        return (
            f"images from {low:g} to {high:g}, not in [0,1]; give them as they were before they were normalized, and "
            "normalize=(mean, std) for the model"
        )
    if high > 1:
        return f"images from {low:g} to {high:.8g}, not in [0,1]; give images / 255 where 255 is white"
    return None


def _fault_of_labels(labels: Tensor, n: int) -> str | None:
    """Return what is wrong with the labels of n images, and what to write; None if they are integers ≥ 0 [N]."""
    shape = tuple(labels.shape)
    if shape == (n, 1):
        return f"labels of shape {shape}; give labels[:, 0]"
    if labels.ndim == 2 and shape[0] == n:
        return f"labels of shape {shape} look like one-hot vectors; give labels.argmax(1)"
    if shape != (n,):
        return f"labels of shape {shape} for {n} images; give one for each image, shape [{n}]"
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        return f"labels of type {labels.dtype}; give integers, as in labels.long() of a tensor, labels.astype(int) else"
    if int(labels.min()) < 0:
        return f"labels from {int(labels.min())} on; give integers from 0 on"
    return None


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder, sorted by name.

    Raises InputError for pictures that would be left out, of a kind that is not read or in a folder inside.
    """
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for inner in (path for path in found if path.is_dir()):
        if any(path.suffix.lower() in (*PICTURES, *OTHER_PICTURES) for path in inner.rglob("*")):
            raise InputError(f"{inner}: its pictures would be left out; move them into {folder} itself")
    files = [path for path in found if not path.is_dir()]
    for path in files:
        if path.suffix.lower() in OTHER_PICTURES:
            raise InputError(f"{path}: a picture that would be left out; save it as {', '.join(PICTURES)}")
    return [path for path in files if path.suffix.lower() in PICTURES]


def read_folder(folder: Path) -> tuple[LabelledImages, list[str]]:
    """Return the images of a folder with one folder for each class, and the names of the classes in order.

    All images need the same size. If all have one channel, they keep it; otherwise all become RGB. Hidden folders are
    left out. Raises InputError.
    """
    if not folder.is_dir():
        raise InputError(
            f"data: there is no folder {str(folder)!r}; give one that exists, or images and their labels; names of "
            "data sets work in mb.evaluate"
        )
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        files = [(path, label) for label, name in enumerate(names) for path in pictures_in(folder / name)]
        direct = any(path.suffix.lower() in PICTURES for path in folder.iterdir())
    except OSError as error:
        raise InputError(f"data: {error.filename} cannot be read ({error.strerror})") from error
    if all(name.isdecimal() for name in names) and names != sorted(names, key=int):
        raise InputError(
            f"data: the folders of {str(folder)!r} have other orders as texts and as numbers ('10' is before '2'); "
            "rename them with leading zeros (02, 10) in the order of the model's classes"
        )
    wanted = f"give a folder that holds one folder of images ({', '.join(PICTURES)}) for each class"
    if not files:
        place = "in no folder of a class" if direct else "nowhere"
        raise InputError(f"data: the images of {str(folder)!r} are {place}; {wanted}")
    if len(names) == 1:
        raise InputError(f"data: {str(folder)!r} holds the folder of one class alone, {names[0]!r}; {wanted}")
    pictures = []
    for path, _ in files:
        try:
            with Image.open(checked_file(path)) as picture:
                pictures.append(grey_or_rgb(picture, f"data: {path}"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"data: {path} cannot be read as an image; replace or remove it") from error
        if pictures[-1].size != pictures[0].size:
            first, other = ("×".join(map(str, picture.size)) for picture in (pictures[0], pictures[-1]))
            raise InputError(
                f"data: {path} has {other} pixels and {files[0][0]} has {first}; give all images the same size"
            )
    mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
    pixels = np.stack([np.asarray(picture.convert(mode), np.float32) / 255 for picture in pictures])
    images = torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1).transpose(0, 3, 1, 2).copy())
    return LabelledImages(images, torch.tensor([label for _, label in files])), names


@cache
def dataset_of_folder(folder: Path) -> type[Given]:
    """Return the data set in a folder of images by class (`read_folder`), which is read once; raises InputError.

    Its name is the folder's, and its revision a hash of the pixels and labels.
    """
    images, names = read_folder(folder)
    return dataset_of(folder.name, images, len(names))
