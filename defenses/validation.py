"""Checks values against the types of a class' fields."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


def adapter(cls: type[T]) -> TypeAdapter[T]:
    """Return the validator of a class, which takes milliseconds to make and is made once per process."""
    return _made(cls)  # type: ignore[arg-type]  # a class, with its own __hash__


@cache
def _made(cls: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cls)  # type: ignore[arg-type]  # a class
