"""The wheel as a user installs it: its own names and nothing else's, whatever lies in the folder they work in."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from commands import environment
from users import write

ROOT = Path(__file__).parents[2]
HOSTILE = 'raise SystemExit("a file of the working folder was imported")\n'


def run(*arguments: object, cwd: Path, **more: str) -> str:
    env = environment(cwd / "cache", **more)
    env.pop("PYTHONPATH")  # the installed package, and nothing of this checkout
    done = subprocess.run(
        list(map(str, arguments)), cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources: setuptools leaves files in the folder that it builds in."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(
        ".git", ".*cache", "__pycache__", "*.egg-info", "build", "results", "tests", "docs"
    )
    shutil.copytree(ROOT, folder / "source", ignore=ignored, symlinks=True)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "./source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_one_package_with_its_types_its_zoo_and_the_baseline_of_quick(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"manifold_bench"}
    assert "manifold_bench/py.typed" in names and "manifold_bench/bench/matrices/smoke.toml" in names
    assert "manifold_bench/bench/baselines/quick/run.json" in names
    zoo = [Path(name) for name in names if name.startswith("manifold_bench/defenses/zoo/")]
    assert {path.name for path in zoo} == {path.name for path in (ROOT / "defenses" / "zoo").glob("*.*[sn]")}
    records = [name for name in names if name.startswith("manifold_bench/bench/baselines/quick/records/")]
    assert len(records) == len(list((ROOT / "bench" / "baselines" / "quick" / "records").iterdir()))


def test_it_runs_in_a_folder_full_of_namesakes(wheel, tmp_path):
    venv.create(tmp_path / "venv", symlinks=True)
    scripts = tmp_path / "venv" / "bin"
    run(sys.executable, "-m", "pip", "--python", scripts / "python", "install", "-q", "--no-deps", wheel, cwd=tmp_path)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    names = ("attacks/__init__.py", "attacks.py", "bench/__init__.py", "defenses.py", "results/__init__.py")
    work = write(tmp_path / "work", dict.fromkeys(names, HOSTILE))
    place = run(scripts / "python", "-c", "import manifold_bench; print(manifold_bench.__file__)", cwd=work)
    assert Path(place.strip()).is_relative_to(site)
    arguments = ("--matrix", "smoke", "--n", 8, "--defense", "undefended", "--attack", "fgsm", "--out", "out")
    run(scripts / "manifold-bench", "run", *arguments, cwd=work)
    summary = pd.read_csv(work / "out" / "summary.csv")
    ran = summary[summary["attack"] == "fgsm"]
    assert len(ran) and set(ran["defense"]) == {"undefended"} and set(ran["status"]) == {"ok"}
