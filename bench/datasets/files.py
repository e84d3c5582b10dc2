"""Published files in the user's data folder: searching them, reading them, and checking that they are complete."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from manifold_bench.bench.errors import InputError, MissingData
from manifold_bench.defenses.errors import message_of
from manifold_bench.defenses.files import checked_file


def data_folders(data: Path | None, dataset: str, files: str, *subfolders: str) -> list[Path]:
    """Return the folders to search: those of `data`/subfolder that exist, then `data` itself.

    files: names of the files, for the message if no folder was given. Raises MissingData if none was given, and
    InputError if it does not exist.
    """
    if data is None:
        places = " or ".join(["DIR", *(f"DIR/{name}" for name in subfolders)])
        raise MissingData(
            f"data set {dataset!r} needs its files: name their folder in the environment variable MANIFOLD_BENCH_DATA, "
            f"or on the command line with --data DIR ({places} holds {files})"
        )
    if not data.is_dir():
        raise InputError(f"--data: {data} is not a folder; give one that exists")
    return [*(data / name for name in subfolders if (data / name).is_dir()), data]


def existing_files(folders: Sequence[Path], *names: str) -> tuple[Path, ...]:
    """Return the first file of each name in those folders; names that are in none of them are left out."""
    found = (next((folder / name for folder in folders if (folder / name).exists()), None) for name in names)
    return tuple(path for path in found if path)


def checked_bytes(folders: Sequence[Path], dataset: str, name: str, checksum: str) -> bytes:
    """Return the content of the first `name`, or unpacked `name`.gz, in those folders.

    checksum: checksum of the published file, unpacked, as "sha256:…" or "md5:…". Raises MissingData if the file is in
    none of them, and InputError if it is damaged.
    """
    algorithm, _, expected = checksum.partition(":")
    path = next((path for path in existing_files(folders, f"{name}.gz", name) if not path.is_dir()), None)
    if path is None:
        raise MissingData(
            f"data set {dataset!r}: {name} is not in {folders[0]}; "
            f"put the published file there, as it is or as {name}.gz (unpacked {algorithm} {expected[:12]}…)"
        )
    try:
        raw = checked_file(path).read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"data set {dataset!r}: {path} cannot be read or is damaged ({message_of(error)}); "
            "put the published file there"
        ) from error
    found = hashlib.new(algorithm, raw, usedforsecurity=False).hexdigest()
    if found != expected:
        raise InputError(
            f"data set {dataset!r}: {path} is damaged or another file: its {algorithm} is {found[:12]}…, "
            f"the published one {expected[:12]}…; put the published file there"
        )
    return raw


def read_image(path: Path, dataset: str, size: tuple[int, int]) -> Image.Image:
    """Return an image file as RGB; raises MissingData or InputError.

    size: width and height of the published images.
    """
    try:
        with Image.open(checked_file(path)) as file:
            image = file.convert("RGB")
    except FileNotFoundError as error:
        raise MissingData(
            f"data set {dataset!r}: {path.name} is not in {path.parent}; put the published images there"
        ) from error
    except Exception as error:  # for a damaged file Pillow raises exceptions of any kind
        raise InputError(
            f"data set {dataset!r}: {path} is damaged ({message_of(error)}); put the published file there"
        ) from error
    if image.size != size:
        raise InputError(
            f"data set {dataset!r}: {path} has {image.width}×{image.height} pixels, the published images "
            f"{size[0]}×{size[1]}; put the published file there"
        )
    return image


def grey_or_rgb(picture: Image.Image, name: str) -> Image.Image:
    """Return a picture with one or three channels of 8 bits. Raises InputError, with its name, for more bits."""
    if picture.mode.startswith(("I", "F")):
        raise InputError(f"{name} has more than 8 bits for each pixel; save it with 8 bits")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")
