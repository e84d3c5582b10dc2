"""Checks of the argument --device."""

from __future__ import annotations

import torch

from manifold_bench.bench.errors import InputError
from manifold_bench.defenses.errors import one_line


def named_device(name: str) -> str:
    """Return the name of a kind of device on another machine; raises InputError for any other or numbered device."""
    device = _parsed(name, "cpu or cuda")
    if device.index is not None:
        raise InputError(f"--device: {name!r}: with --engine ray give {device.type!r}, because Ray chooses the number")
    return name


def checked_device(name: str) -> str:
    """Return the name of a device of this machine; raises InputError if it cannot be used."""
    device = _parsed(name, "cpu, cuda or cuda:N")
    try:
        torch.ones(1, device=device).item()
    except Exception as error:  # backends that are not built in raise what they like
        raise InputError(f"--device: {name!r} cannot be used here ({one_line(error)}); cpu always can") from error
    return name


def _parsed(name: str, allowed: str) -> torch.device:
    """Return the device of that name; raises InputError, which says what is allowed, if torch knows no such device."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device: {name!r} is no device; give {allowed}") from error
