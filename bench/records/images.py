"""Adversarial images of whole cells, stored in files that NumPy reads: `numpy.load(file)`.

images/<data set>--<defense>--<attack>--<norm>--<ε>--<key>.npz   in the folder of a run with `--export`
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

import numpy as np
from pydantic import JsonValue

from manifold_bench.bench.errors import InputError, system_error
from manifold_bench.bench.records.files import Name, parsed
from manifold_bench.bench.records.results import CELL_COLUMNS, Results, cell_text
from manifold_bench.bench.records.schema import ATTACK
from manifold_bench.bench.records.store import file_name
from manifold_bench.bench.text import eps_of, eps_text
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.files import atomic_write, checked_file
from manifold_bench.defenses.identity import JsonObject, key_of

FOLDER = "images"


@dataclass(frozen=True, eq=False)
class AdversarialImages:
    """The adversarial images of a cell, one for each attacked input, and the inputs that they were made from.

    images: float32 [N,C,H,W], as they were judged, pixels in [0, 1]. labels: int64 [N], true labels, −1 for noise.
    indices: int64 [N], indices of the unperturbed images in the data set's split. inputs: [N], sha256 of the float32
    bytes of each unperturbed image. meta: data set, split, defense, attack, norm, eps and seed.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    inputs: np.ndarray
    meta: JsonObject

    def __repr__(self) -> str:
        cell = [str(self.meta[name]) for name in ("dataset", "defense", "attack", "norm") if name in self.meta]
        size = self.meta.get("eps")
        cell += [f"ε = {eps_text(size)}"] if isinstance(size, (int, float)) else []
        return f"AdversarialImages({', '.join([f'images of shape {self.images.shape}', *cell])})"

    def save(self, path: str | Path) -> None:
        """Write the arrays into one .npz file; `meta` becomes an array with its JSON text."""
        arrays = {name: getattr(self, name) for name in ("images", "labels", "indices", "inputs")}
        file = io.BytesIO()
        np.savez(file, **arrays, meta=np.array(json.dumps(self.meta)))
        atomic_write(Path(path), file.getvalue())


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Return name → array of an .npz file; raises InputError where it cannot be read."""
    try:
        file = np.load(checked_file(path), allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("one array alone, as in an .npy file")
        with file:
            return dict(file)
    except OSError as error:
        raise InputError(system_error(error)) from error
    except Exception as error:  # for a damaged archive numpy, zipfile and zlib raise exceptions of any kind
        raise InputError(f"{path}: not an .npz file of plain arrays ({one_line(error)})") from error


def load(path: Path) -> AdversarialImages:
    """Return the images that `AdversarialImages.save` wrote; raises InputError for any other file."""
    arrays = arrays_of(path)
    try:
        parts = {name: arrays[name] for name in ("images", "labels", "indices", "inputs")}
        return AdversarialImages(meta=meta_of(arrays, path), **parts)
    except KeyError as error:
        raise InputError(f"{path}: not adversarial images of a run: the array {error} is missing") from error


def meta_of(arrays: Mapping[str, np.ndarray], path: Path) -> JsonObject:
    """Return the table `meta` of a file's arrays, {} where it is missing; raises InputError if it is not JSON."""
    try:
        return parsed(str(arrays.get("meta", "{}")).encode(), dict[Name, JsonValue])
    except ValueError as error:
        raise InputError(f"{path}: meta: not a table in JSON ({one_line(error)})") from error


def path_of(folder: Path, identity: JsonObject, eps: float) -> Path:
    """Return the path of the images of a job at one ε. folder: of the run. identity: of the job."""
    short = eps_text(eps)
    size = short if short != "∞" and eps_of(short) == eps else repr(float(eps))
    names = [identity["dataset"]["name"], identity["defense"]["label"], identity["attack"]["label"], identity["norm"]]
    return folder / FOLDER / f"{file_name(*names, size)}--{key_of(identity)[:16]}.npz"


class Attacking(Protocol):
    """The parts of a planned job that this module needs."""

    @property
    def identity(self) -> JsonObject: ...
    @property
    def eps(self) -> tuple[float, ...]: ...
    @property
    def keeps_images(self) -> bool: ...


def are_kept(job: Attacking, folder: Path) -> bool:
    """Return whether a run's folder holds all images that a job has to keep; true for a job that keeps none."""
    return not job.keeps_images or all(path_of(folder, job.identity, eps).exists() for eps in job.eps)


def adversarial(results: Results, wanted: Mapping[str, object]) -> AdversarialImages:
    """Return the adversarial images of the one attacked cell that matches.

    wanted: column of the records → value. Raises InputError where no cell or several match, or where the run did not
    keep the images.
    """
    rows = results.records[results.records["kind"] == ATTACK]
    for column, value in wanted.items():
        found = rows[rows[column] == value]
        if found.empty:
            known = ", ".join(eps_text(one) if column == "eps" else str(one) for one in rows[column].unique())
            shown = eps_text(value) if isinstance(value, (int, float)) and column == "eps" else repr(value)
            raise InputError(f"{column}: {shown} is not in these results; they have: {known or 'no attacks'}")
        rows = found
    for column in (*CELL_COLUMNS, "seed"):
        if len(values := rows[column].unique()) > 1:
            known = ", ".join(eps_text(one) if column == "eps" else repr(one) for one in values.tolist())
            raise InputError(f"{column}: these results have several: {known}; name one")
    first = rows.iloc[0]
    path = path_of(results.folder, results.identities[first["key"]], first["eps"])
    if not path.exists():
        cell = cell_text(tuple(first[column] for column in CELL_COLUMNS))
        raise InputError(f'{cell}: the images were not kept; run again with export="FOLDER" (--export FOLDER)')
    return load(path)


def export(results: Results, keys: Iterable[str], target: Path) -> int:
    """Copy the stored images of jobs into a folder, which is made where it is missing; return the number of files.

    keys: shortened keys of the jobs. Raises InputError as `check_export` does.
    """
    rows = results.records[(results.records["kind"] == ATTACK) & (results.records["status"] == "ok")]
    rows = rows[rows["key"].isin(list(keys))]
    cells = rows[["key", "eps"]].drop_duplicates().itertuples(index=False)
    files = [path_of(results.folder, results.identities[key], eps) for key, eps in cells]
    with _exporting(target):
        for file in files:
            with suppress(shutil.SameFileError):  # the run's own images are there already
                shutil.copyfile(file, target / file.name)
    return len(files)


def check_export(target: Path) -> None:
    """Make a folder for images, before any are computed; raises InputError where it cannot be written to."""
    with _exporting(target), TemporaryFile(dir=target):
        pass


@contextmanager
def _exporting(target: Path) -> Iterator[None]:
    try:
        target.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"--export: {system_error(error)}") from error
