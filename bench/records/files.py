"""Reads the JSON files of a run's folder and refuses files that are damaged or hold values of other types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from manifold_bench.bench.errors import InputError, system_error
from manifold_bench.bench.text import is_printable
from manifold_bench.defenses.files import checked_file
from manifold_bench.defenses.validation import adapter

T = TypeVar("T")


def _shown(text: str) -> str:
    if not is_printable(text):
        raise ValueError("holds control characters")
    return text


def _file(name: str) -> str:
    if name != Path(name).name or len(name.encode()) > 255:
        raise ValueError("is not the name of a file")
    return name


STRICT = ConfigDict(strict=True, extra="allow")
"""Configuration of the models of files: a text is not accepted as a number; keys that are not named are kept."""

Name = Annotated[str, Field(min_length=1), AfterValidator(_shown)]
"""A text that tables and file names may show: not empty, and without control characters."""

FileName = Annotated[Name, AfterValidator(_file)]
"""The name of a file, without a folder."""

Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]

Positive = Annotated[int, Field(ge=1, lt=2**31)]

Number = Annotated[float, Field(allow_inf_nan=False)]


def read_json(path: Path, kind: type[T], remedy: str) -> T:
    """Return the content of a JSON file as an instance of a type.

    remedy: what the user can do about a damaged file, for the message. Raises InputError that names file and key.
    """
    try:
        return parsed(checked_file(path).read_bytes(), kind)
    except OSError as error:
        raise InputError(f"{system_error(error)}; {remedy}") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); {remedy}") from error


def parsed(content: bytes, kind: type[T]) -> T:
    """Return JSON as an instance of a type; raises ValueError that names the first wrong key: `machine.cores: …`."""
    try:
        return adapter(kind).validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        raise ValueError(": ".join(filter(None, [".".join(map(str, fault["loc"])), fault["msg"]]))) from error
