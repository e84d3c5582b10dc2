"""Command-line arguments that several commands share, checked."""

from __future__ import annotations

import argparse
from pathlib import Path

from manifold_bench.bench.errors import InputError
from manifold_bench.defenses.errors import one_line


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not allowed; give a whole number ≥ 1")
    return value


def natural(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{value} is not allowed; give a whole number ≥ 0 and < 2^63")
    return value


def path_text(text: str) -> str:
    """A path or URL as it is; raises ArgumentTypeError for what no file system takes."""
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; a path holds no NUL character")
    return text


def path(text: str) -> Path:
    return Path(path_text(text))


def named_device(name: str) -> str:
    """The kind of a device that another machine has; raises InputError for what is none, or one of several."""
    import torch  # late: --help must not wait for it

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device: {name!r} is no device ({one_line(error)})") from error
    if device.index is not None:
        raise InputError(f"--device: {name!r}: with --engine ray give {device.type!r}; Ray says which of a machine's")
    return name


def checked_device(name: str) -> str:
    """The device, if it is there."""
    import torch  # late: --help must not wait for it

    try:
        torch.ones(1, device=name).item()
    except Exception as error:  # backends that are not built in raise what they like
        raise InputError(f"--device: {name!r} cannot be used here ({one_line(error)})") from error
    return name
