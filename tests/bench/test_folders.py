"""A folder of images by class as the data set of a command."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import bench_run, command, last_events, record_files, records
from PIL import Image
from torch import nn

import manifold_bench as mb
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.refs import DatasetRef
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.run import main

NETWORK = """
from torch import nn

from manifold_bench.defenses.base import Defense


class Fixed(Defense):
    def forward(self, x):
        return x.flatten(1)[:, : self.num_classes]


net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 5, 3))
"""

MATRIX = """
datasets = [{ name = "digits", n = 6 }]
defenses = ["undefended"]
calibration = 5
attacks = [{ name = "pgd", steps = 2, eps = ["8/255"] }]
"""

WORDS = ("--dataset", "./pics", "--defense", "pictured.py:net")


def picture(path: Path, seed: int, size: tuple[int, int] = (5, 6)) -> None:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Iterator[Path]:
    """Three classes of two pictures, a model of them, and a matrix."""
    for number in range(6):
        picture(tmp_path / "pics" / f"class{number % 3}" / f"{number}.png", number)
    (tmp_path / "pictured.py").write_text(NETWORK)
    (tmp_path / "matrix.toml").write_text(MATRIX)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("pictured", None)


def planned(home: Path) -> set[str]:
    """The keys of the jobs in the last run."""
    return {job["key"] for job in json.loads((home / "out" / "run.json").read_text())["jobs"]}


def test_a_folder_is_attacked_in_processes_and_found_finished(home):
    assert (
        command("run", "--matrix", "matrix.toml", *WORDS, "--dry-run", cache=home / "cache", cwd=home).returncode == 0
    )
    assert not (home / "results").exists()
    done = bench_run("matrix.toml", home / "out", *WORDS, cwd=home)
    assert done.returncode == 0, done.stderr
    found = records(home / "out")
    assert set(found["dataset"]) == {"./pics"} and set(found["kind"]) == {"clean", "attack"}
    assert set(found["status"]) == {"ok"}
    clean = found[found["kind"] == "clean"].sort_values("sample")
    assert clean["label"].tolist() == [0, 0, 1, 1, 2, 2]
    before = record_files(home / "out")
    assert bench_run("matrix.toml", home / "out", *WORDS, cwd=home).returncode == 0
    assert record_files(home / "out") == before


def test_results_are_found_by_the_content_of_the_images(home):
    run = ["--matrix", "matrix.toml", *WORDS, "--out", "out", "--workers", "0", "--quiet"]
    assert main(run) == 0
    first = planned(home)
    shutil.move(home / "pics", home / "else" / "where")
    picture(home / "pics" / "class0" / "0.png", 0)
    shutil.rmtree(home / "pics")
    shutil.copytree(home / "else" / "where", home / "pics")
    (home / "pics" / "class0" / "notes.txt").write_text("no picture")
    (home / "pics" / ".hidden").mkdir()
    assert main(run) == 0 and planned(home) == first
    picture(home / "pics" / "class0" / "0.png", 17)
    assert main(run) == 0 and not planned(home) & first


def test_a_run_of_a_matrix_file_sees_new_images(home):
    """It is not found finished by its stamp, which knows of no image."""
    run = ["--matrix", "matrix.toml", "--out", "out", "--workers", "0", "--quiet"]
    (home / "matrix.toml").write_text(MATRIX.replace("digits", "./pics").replace("undefended", "pictured.py:Fixed"))
    assert main(run) == 0
    first = planned(home)
    picture(home / "pics" / "class0" / "0.png", 17)
    assert main(run) == 0 and not planned(home) & first


def test_the_same_images_as_in_python(home):
    data = DatasetRef("./pics", None).load()
    result = mb.evaluate("pictured.py:net", "./pics", attacks=["noise"], eps=0.1)
    clean = result.records[result.records["kind"] == "clean"]
    assert sorted(clean["label"]) == data.test.labels.tolist() and (data.shape, data.num_classes) == ((3, 6, 5), 3)


def test_a_folder_without_one_of_the_model_s_classes_is_refused(home):
    """The labels of the classes after it would be wrong."""
    shutil.rmtree(home / "pics" / "class1")
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 5, 3))
    with pytest.raises(mb.InputError, match="3 outputs for 2 classes"):
        mb.evaluate(model, home / "pics", attacks=["noise"], eps=0.1)


def test_a_registered_name_comes_before_a_folder(home):
    (home / "digits").mkdir()
    assert find("datasets", "digits").name == "digits"
    with pytest.raises(InputError, match="digits"):
        find("datasets", "./digits")


def empty(pics: Path) -> None:
    shutil.rmtree(pics)
    pics.mkdir()


def no_classes(pics: Path) -> None:
    for number, path in enumerate(sorted(pics.rglob("*.png"))):
        path.rename(pics / f"{number}.png")


def one_class(pics: Path) -> None:
    shutil.rmtree(pics / "class0")
    shutil.rmtree(pics / "class2")


def many_bits(pics: Path) -> None:
    Image.fromarray(np.full((6, 5), 40_000, dtype=np.uint16)).save(pics / "class0" / "0.png")


def truncated(pics: Path) -> None:
    content = (pics / "class0" / "0.png").read_bytes()
    (pics / "class0" / "0.png").write_bytes(content[:60])


def numbers(pics: Path) -> None:
    for number in range(11):
        picture(pics / str(number) / "0.png", number)
    for number in range(3):
        shutil.rmtree(pics / f"class{number}")


FAULTS = {
    "empty": (empty, ["pics", "for each class"]),
    "no folders": (no_classes, ["pics", "for each class"]),
    "one class": (one_class, ["pics", "class1"]),
    "other size": (lambda pics: picture(pics / "class2" / "9.png", 0, (7, 6)), ["9.png", "7×6", "5×6"]),
    "no image": (lambda pics: (pics / "class0" / "0.png").write_text("x"), ["0.png"]),
    "truncated": (truncated, ["0.png"]),
    "classes without leading zeros": (numbers, ["pics", "leading zeros"]),
    "pictures in a folder inside": (
        lambda pics: picture(pics / "class2" / "more" / "9.png", 0),
        ["more: its pictures would be left out"],
    ),
    "a picture of another kind": (lambda pics: picture(pics / "class2" / "9.tiff", 0), ["9.tiff", ".png"]),
    "16 bits": (many_bits, ["0.png", "8 bits"]),
    "no folder": (shutil.rmtree, ["pics", "no such folder"]),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_is_no_folder_of_images_is_refused_in_one_line(home, case, capsys):
    spoil, words = FAULTS[case]
    spoil(home / "pics")
    assert main(["--matrix", "matrix.toml", *WORDS, "--out", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert not (home / "out").exists()


@pytest.mark.parametrize("name", ["train", "judge"])
def test_other_commands(home, name):
    """Images of a folder can be judged; nothing can be trained on them."""
    if name == "train":
        words = ("--dataset", "./pics", "--defense", "undefended")
        done = command("train", *words, cache=home / "cache", cwd=home)
        (log,) = (home / "cache" / "weights").glob("*.log.jsonl")
        (failed,) = last_events(log, "training failed")
        assert done.returncode == 1 and "'pics': it has only test images" in failed["reason"]
        return
    images = np.stack([np.full((3, 6, 5), 0.5, np.float32)] * 6)
    np.savez(home / "found.npz", images=images)
    words = ("found.npz", *WORDS, "--norm", "Linf", "--eps", "1", "--out", "judged", "--workers", "1")
    done = command("judge", *words, cache=home / "cache", cwd=home)
    assert done.returncode == 0, done.stderr
    assert (records(home / "judged").query("kind == 'attack'")["distance"] <= 0.5 + 1e-6).all()
