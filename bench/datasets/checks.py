"""Checks of the images and labels of a data set, because faulty ones would give wrong figures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from manifold_bench.bench.datasets.base import Dataset, Split
from manifold_bench.bench.errors import InputError
from manifold_bench.defenses.base import LabelledImages
from manifold_bench.defenses.checks import TEXT, ContractError, Expected, check, checked, value_text


def check_dataset(data: Dataset, *splits: Split) -> None:
    """Check what a data set declares, and these splits; raises InputError, which names the data set."""
    try:
        for part in ("name", "revision", "zoo"):
            check(data, part, TEXT)
        sizes = Expected("(channels, height, width), whole numbers ≥ 1", lambda value: _are_sizes(value, 3))
        check(data, "shape", sizes)
        check(data, "files", Expected("a tuple of paths", _are_paths))
        check(data, "num_classes", Expected("a whole number ≥ 1", lambda value: _are_sizes((value,), 1)))
        for name in splits:
            if data.test_only and name != "test":
                raise ContractError("it has only test images; give a defense that is trained already")
            labelled = Expected("LabelledImages", lambda value: isinstance(value, LabelledImages))
            read = partial(getattr, data, name)  # "train", "validation" or "test"
            split, again = checked(data, name, labelled, read), read()
            fault = fault_of(split, data.shape, data.num_classes)
            if not fault and not (torch.equal(split.images, again.images) and torch.equal(split.labels, again.labels)):
                fault = "it differs when it is read again; expected the same images in the same order"
            if fault:
                raise ContractError(f"split {name!r}: {fault}")
    except ContractError as error:
        if isinstance(error.__cause__, InputError):  # such as a missing file, which has its own message
            raise error.__cause__ from error
        raise InputError(f"data set {getattr(data, 'name', type(data).__name__)!r}: {error}") from error


def _are_paths(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(path, Path) for path in value)


def _are_sizes(value: object, count: int) -> bool:
    if not (isinstance(value, tuple) and len(value) == count):
        return False
    return all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in value)


def fault_of(split: LabelledImages, shape: tuple[int, int, int], classes: int) -> str | None:
    """Return what is wrong with the images or labels of a split, and what is expected; None if nothing is wrong."""
    images, labels = split.images, split.labels
    for name, value, dtype in (("images", images, torch.float32), ("labels", labels, torch.int64)):
        if not isinstance(value, Tensor):
            return f"{name} is {value_text(type(value).__name__)}; expected a tensor of {dtype}"
        if value.dtype is not dtype:
            return f"{name} is a tensor of {value.dtype}; expected {dtype}"
        if value.device.type != "cpu":
            return f"{name} is on {value.device}; expected a tensor on the CPU"
        if value.requires_grad:
            return f"{name} requires a gradient; expected plain data, as from detach()"
    if images.dim() != 4 or tuple(images.shape[1:]) != tuple(shape):
        turned = images.dim() == 4 and sorted(images.shape[1:]) == sorted(shape)
        hint = "; as_images takes pixels [N,H,W] or [N,H,W,C]" if turned else ""
        return f"images has shape {list(images.shape)}; expected [N, {', '.join(map(str, shape))}]{hint}"
    if labels.shape != images.shape[:1]:
        return f"labels has shape {list(labels.shape)}; expected [{len(images)}], one label for each image"
    if not len(images):
        return "it is empty; expected at least one image"
    low, high = (float(value) for value in images.aminmax())  # NaN where any pixel is
    if not (low >= 0 and high <= 1):
        return f"pixels reach from {low:g} to {high:g}; expected finite ones in [0, 1], neither 0…255 nor standardised"
    return fault_of_labels(labels, classes)


def fault_of_labels(labels: Tensor, classes: int) -> str | None:
    """Return what is wrong with the range of labels [N], and what is expected; None if all are in 0…classes − 1."""
    first, last = (int(value) for value in labels.aminmax())
    if first >= 0 and last < classes:
        return None
    advice = "; give labels - 1" if (first, last) == (1, classes) else ""
    return f"labels reach from {first} to {last}; expected 0…{classes - 1} for {classes} classes{advice}"
