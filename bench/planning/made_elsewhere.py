"""Adversarial images made elsewhere: which files of them are read, and which images of a data set they belong to."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from manifold_bench.bench.datasets.base import Dataset, image_hashes
from manifold_bench.bench.datasets.files import grey_or_rgb
from manifold_bench.bench.datasets.given import PICTURES, pictures_in
from manifold_bench.bench.errors import InputError, system_error
from manifold_bench.bench.records.images import AdversarialImages, arrays_of, meta_of
from manifold_bench.bench.text import LEVELS
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.files import checked_file
from manifold_bench.defenses.identity import JsonObject

TORCH = (".pt", ".pth")


@dataclass(frozen=True, eq=False)
class Found:
    """Images [N,C,H,W] of a file, float32 where pixels span 0 to 1, and what it says of them; None: nothing.

    labels: [N]. indices: [N], of the unperturbed images in the data set's test split. inputs: [N], their sha256.
    meta: as in `AdversarialImages`.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    indices: np.ndarray | None = None
    inputs: np.ndarray | None = None
    meta: JsonObject | None = None


def read(path: Path) -> dict[str, Found]:
    """Return the images of a file or folder, by name where it holds several sets of them, else under "".

    An .npz file as a run writes it (`AdversarialImages`), at least with an array `images`. A .pt or .pth file of a
    tensor (RobustBench), or of tensors by name (AutoAttack's `adv_complete`, or one for each of its attacks); its code,
    if it holds any, is not run. A folder of pictures, each named by its index in the test split: 0000.png
    (AutoAdvExBench). Raises InputError.
    """
    if path.is_dir():
        return {"": _folder(path)}
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix == ".npz":
        return {"": _npz(path)}
    if path.suffix in TORCH:
        return _tensors(path)
    raise InputError(f"{path}: not an .npz, .pt or .pth file, nor a folder of pictures")


def _npz(path: Path) -> Found:
    arrays = arrays_of(path)
    if "images" not in arrays:
        raise InputError(f"{path}: has no array `images`, but {', '.join(arrays) or 'none'}")
    parts = {name: arrays.get(name) for name in ("labels", "indices", "inputs")}
    return Found(_checked(path, arrays["images"]), **parts, meta=meta_of(arrays, path))


def _tensors(path: Path) -> dict[str, Found]:
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(checked_file(path), map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(system_error(error)) from error
    except Exception as error:  # for a file of anything else torch and pickle raise exceptions of any kind
        raise InputError(f"{path}: not a file of tensors ({one_line(error)})") from error
    named = content if isinstance(content, dict) else {"": content}
    images = {str(name): one for name, one in named.items() if isinstance(one, torch.Tensor) and one.ndim == 4}
    if not images:
        raise InputError(f"{path}: holds no 4-dimensional tensor; save images [N,C,H,W], floats in [0, 1] or uint8")
    found = {name: Found(_checked(path, _array(path, one))) for name, one in images.items()}
    return found if len(found) > 1 else {"": next(iter(found.values()))}


def _array(path: Path, images: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array, float32 for float types that NumPy lacks; raises InputError where it cannot be."""
    if images.layout != torch.strided or images.is_quantized or images.is_meta:
        kind = f"type {images.dtype}, layout {images.layout}, device {images.device}"
        raise InputError(f"{path}: images of {kind}; save an ordinary tensor of floats from 0 to 1, or of uint8")
    images = images.detach()
    lacking = images.is_floating_point() and images.dtype not in (torch.float64, torch.float32, torch.float16)
    return (images.float() if lacking else images).numpy()


def _folder(path: Path) -> Found:
    files = pictures_in(path)
    for file in files:
        if not (file.stem.isascii() and file.stem.isdigit()):
            raise InputError(f"{file}: name each picture by its index in the data set's test images, as in 0000.png")
    if not files:
        raise InputError(
            f"{path}: holds no pictures; put in {', '.join(PICTURES)} files named by test image, as in 0000.png"
        )
    pictures = [_picture(file) for file in files]
    if len({picture.shape for picture in pictures}) > 1:
        raise InputError(f"{path}: its pictures differ in size or channels; give pictures like the data set's images")
    return Found(_checked(path, np.stack(pictures)), indices=np.array([int(file.stem) for file in files]))


def _picture(file: Path) -> np.ndarray:
    """Return a picture as uint8 [C,H,W], with one or three channels; raises InputError if it cannot be read."""
    try:
        with Image.open(checked_file(file)) as picture:
            pixels = np.asarray(grey_or_rgb(picture, str(file)))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{file}: cannot be read as a picture ({one_line(error)})") from error
    return np.atleast_3d(pixels).transpose(2, 0, 1)


def _checked(path: Path, images: np.ndarray) -> np.ndarray:
    """Return images [N,C,H,W] in float32, with 8-bit ones divided by 255; raises InputError for any others."""
    if images.ndim != 4 or not len(images):
        raise InputError(f"{path}: images of shape {list(images.shape)}; expected [N,C,H,W] with at least one image")
    if images.dtype == np.uint8:
        return (images / np.float32(LEVELS)).astype(np.float32)
    if not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"{path}: images of type {images.dtype}; give floats from 0 to 1, or uint8")
    largest = float(np.abs(images[np.isfinite(images)]).max(initial=0))
    if largest > 2:
        raise InputError(f"{path}: pixels reach {largest:g}; give floats from 0 to 1, or uint8")
    return images.astype(np.float32)


def first(found: Found, n: int | None) -> Found:
    """Return the first n images, or all if n is None; raises InputError if there are fewer."""
    if n is not None and n > len(found.images):
        raise InputError(f"--n: {n}: the file has {len(found.images)} images; give that or less")
    labels, indices, inputs = (
        None if part is None else part[:n] for part in (found.labels, found.indices, found.inputs)
    )
    return Found(found.images[:n], labels, indices, inputs, found.meta)


def matched(found: Found, dataset: Dataset, path: Path) -> AdversarialImages:
    """Find the unperturbed images of a data set's test split that these belong to; raises InputError.

    They are those of the indices, or else the first ones. What the file says of labels and of the unperturbed images
    has to agree with the data set.
    """
    test, n = dataset.test, len(found.images)
    if found.images.shape[1:] != dataset.shape:
        shapes = f"{list(found.images.shape[1:])}, those of data set {dataset.name!r} {list(dataset.shape)}"
        raise InputError(f"{path}: images are of shape {shapes}; name their data set by --dataset")
    indices = np.arange(n) if found.indices is None else found.indices
    for name, values in (("indices", indices), ("labels", found.labels), ("inputs", found.inputs)):
        if values is not None and values.shape != (n,):
            raise InputError(f"{path}: {name} of shape {list(values.shape)} for {n} images; give shape [{n}]")
    if not np.issubdtype(indices.dtype, np.integer):
        raise InputError(f"{path}: indices of type {indices.dtype}; give integers")
    if indices.min() < 0 or indices.max() >= len(test):
        raise InputError(
            f"{path}: data set {dataset.name!r} has {len(test)} test images; give indices from 0 to {len(test) - 1}"
        )
    if len(np.unique(indices)) < n:
        raise InputError(f"{path}: an index is there twice; give one image for each")
    rows = torch.from_numpy(indices.astype(np.int64))
    labels, inputs = test.labels[rows].numpy(), np.array(image_hashes(test.images[rows]))
    for name, given, own in (("labels", found.labels, labels), ("unperturbed images", found.inputs, inputs)):
        if given is not None and (differs := given != own).any():
            where = f"{int(differs.sum())} of {n}, first at index {int(indices[differs][0])}"
            raise InputError(f"{path}: the {name} are not those of data set {dataset.name!r} ({where})")
    return AdversarialImages(found.images, labels, indices, inputs, dict(found.meta or {}))
