"""Where results come from: code revision, versions, machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from manifold_bench.bench.records.files import STRICT, Name, Number, Whole, read_json
from manifold_bench.bench.records.packages import PACKAGES, package_version
from manifold_bench.defenses.identity import JsonObject


def code_revision() -> str:
    """The checkout's commit, with `+dirty` where tracked files differ from it; the package's version elsewhere."""
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
    """Code, versions and machine, as plain data."""
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
    """One line on what `kernels.kernels` describes: `AMD EPYC, AVX512, torch 2.13.0, MKL_CBWR=AUTO,STRICT`."""
    settings = (f"{name}={value}" for name, value in described["environment"].items())
    chip = described.get("gpu") or f"{described['processor']}, {described['instructions']}"
    return ", ".join([chip, f"torch {described['torch']}", *settings])


def uneven_text(described: list[JsonObject]) -> str | None:
    """One line on the uneven layers in descriptions of a run's kernels; None where there are none."""
    uneven = sorted({layer for one in described for layer in one.get("uneven", ())})
    if not uneven:
        return None
    more = f" and {len(uneven) - 1} more" if uneven[1:] else ""
    return (
        f"note: the kernels of this machine round by the size of the batch ({uneven[0]}{more}), so single inputs can "
        "differ between runs that batch them otherwise; see docs/reproducibility.md"
    )


class _Part(BaseModel):
    """A part of run.json; what is not named here is kept as it is."""

    model_config = STRICT


class Machine(_Part):
    system: str
    processor: str
    cores: Whole | None


class DatasetPart(_Part):
    name: Name
    n: Whole | None


class MatrixPart(_Part):
    source: str
    datasets: list[DatasetPart]
    claims: list[JsonObject] = []


class NamedPart(_Part):
    defenses: list[Name] = []
    attacks: list[Name] = []


class BorrowedPart(_Part):
    folder: str
    code: str
    started: str
    jobs: Whole


class KernelsPart(_Part):
    processor: str
    instructions: str
    torch: str
    environment: dict[str, str]
    uneven: list[str] = []
    gpu: str | None = None


class RunFile(_Part):
    """run.json as far as it is read again."""

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
    borrowed: list[BorrowedPart] = []
    kernels: list[KernelsPart] = []


def stored_provenance(folder: Path) -> JsonObject:
    """run.json of the run in that folder, {} where there is none; raises InputError that names the key at fault."""
    path = folder / "run.json"
    if not path.exists():
        return {}
    run = read_json(path, RunFile, "run again, or delete it to do without")
    return run.model_dump(exclude_unset=True)
