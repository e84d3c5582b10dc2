"""The provenance of results: code revision, versions of packages, machine, and the file run.json."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from manifold_bench.bench.records.files import STRICT, Name, Number, Whole, read_json
from manifold_bench.bench.records.packages import PACKAGES, package_version
from manifold_bench.defenses.identity import JsonObject


@dataclass(frozen=True)
class Reused:
    """Records that were taken from a baseline: its folder, code revision and date, and the number of jobs."""

    folder: str
    code: str
    started: str
    jobs: int

    def __str__(self) -> str:
        return f"{self.jobs} jobs from the baseline {self.folder} (code {self.code}, {self.started}), not run again"


def code_revision() -> str:
    """Return the commit of the checkout, with `+dirty` if tracked files differ from it; else the package's version."""
    root = Path(__file__).resolve().parents[2]
    try:
        if (root / ".git").exists():
            commit = _git(root, "rev-parse", "HEAD")
            return commit + ("+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        pass  # no git program, or no commit yet
    return f"manifold-bench {package_version('manifold-bench')}"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def provenance() -> JsonObject:
    """Return code revision, versions, machine and command line as data for JSON."""
    return {
        "code": code_revision(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def kernels_text(described: JsonObject) -> str:
    """Return a description of kernels on one line: `AMD EPYC, AVX512, torch 2.13.0, MKL_CBWR=AUTO,STRICT`.

    described: result of `running.kernels.kernels`.
    """
    settings = (f"{name}={value}" for name, value in described["environment"].items())
    chip = described.get("gpu") or f"{described['processor']}, {described['instructions']}"
    return ", ".join([chip, f"torch {described['torch']}", *settings])


def uneven_text(described: list[JsonObject]) -> str | None:
    """Return a note on layers that round differently for different batch sizes; None where there are none.

    described: descriptions of the kernels of a run.
    """
    uneven = sorted({layer for one in described for layer in one.get("uneven", ())})
    if not uneven:
        return None
    layers = f"{len(uneven)} layers, such as {uneven[0]}," if uneven[1:] else f"one layer, {uneven[0]},"
    return (
        f"note: on this machine {layers} may round an image's outputs differently in batches of other sizes, so that "
        "single inputs can differ between runs; there is nothing to do (docs/reproducibility.md)"
    )


class _Part(BaseModel):
    """A part of run.json; keys that are not named here are kept as they are."""

    model_config = STRICT


class Machine(_Part):
    system: str
    processor: str
    cores: Whole | None


class DatasetPart(_Part):
    name: Name
    n: Whole | None


class SystemPart(_Part):
    """A defense or an attack of the matrix."""

    name: str
    label: Name
    parameters: JsonObject = {}
    draws: Whole | None = None
    randomized: bool = False


class MatrixPart(_Part):
    source: str
    datasets: list[DatasetPart]
    defenses: list[SystemPart] = []
    attacks: list[SystemPart] = []
    claims: list[JsonObject] = []
    budget: str = ""


class NamedPart(_Part):
    defenses: list[Name] = []
    attacks: list[Name] = []
    datasets: list[Name] = []


class ReusedPart(_Part):
    """The fields of `Reused`."""

    folder: str
    code: str
    started: str
    jobs: Whole


class UndecidedPart(_Part):
    """The fields of `planning.adaptive.Undecided`; older files have no sizes."""

    dataset: Name
    family: Name
    defenses: list[Name]
    sizes: dict[Name, dict[Name, list[Annotated[float, Field(ge=0)]]]] = {}


class KernelsPart(_Part):
    processor: str
    instructions: str
    torch: str
    environment: dict[str, str]
    uneven: list[str] = []
    gpu: str | None = None


class RunFile(_Part):
    """The keys of run.json that are read again."""

    code: str
    python: str
    packages: dict[str, str]
    machine: Machine
    command: list[str]
    started: str
    finished: bool
    wall_seconds: Number
    workers: Whole
    device: str
    seeds: Annotated[list[Whole], Field(min_length=1)]
    draws: Whole
    matrix: MatrixPart
    named: NamedPart = NamedPart()
    missing_data: dict[Name, str] = {}
    skipped: list[str] = []
    reused: list[ReusedPart] = []
    undecided: list[UndecidedPart] = []
    kernels: list[KernelsPart] = []


def stored_provenance(folder: Path) -> JsonObject:
    """Return the content of run.json in a run's folder, {} where it is missing.

    Raises InputError that names the wrong key.
    """
    path = folder / "run.json"
    if not path.exists():
        return {}
    run = read_json(path, RunFile, "run again, or delete it to go on without it")
    return run.model_dump(exclude_unset=True)
