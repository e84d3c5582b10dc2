"""A pipe or a device in place of whatever is read is refused by name: reading from it may never end."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from fuzzing import called
from PIL import Image

import manifold_bench as mb
from manifold_bench.bench import judge as judging
from manifold_bench.bench import run as running
from manifold_bench.bench.running import kernels, timings
from manifold_bench.bench.running.estimate import Kind
from manifold_bench.defenses import training, weights

NETWORK = "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self) -> None:\n"
NETWORK += "        super().__init__(nn.Flatten(), nn.Linear(64, 10))\n"

DRY = ("--matrix", "smoke", "--dry-run")
SMOKE = (running.main, *DRY)
JUDGE = (judging.main, "--defense", "undefended", "--dataset", "digits", "--norm", "linf", "--eps", "0.1")

CASES = {
    "scripted.pt": (*SMOKE, "--defense", "scripted.pt"),
    "saved.pt": (*SMOKE, "--defense", "network_of_no_files.py:Net@saved.pt"),
    "saved.safetensors": (*SMOKE, "--defense", "network_of_no_files.py:Net@saved.safetensors"),
    "svhn/test_32x32.mat": (*SMOKE, "--dataset", "svhn", "--data", "."),
    "cifar10/test_batch.bin": (*SMOKE, "--dataset", "cifar10", "--data", "."),
    "mnist/t10k-images-idx3-ubyte": (*SMOKE, "--dataset", "mnist", "--data", "."),
    "mnist/t10k-images-idx3-ubyte.gz": (*SMOKE, "--dataset", "mnist", "--data", "."),
    "coil100/coil100_32.npz": (*SMOKE, "--dataset", "coil100", "--data", "."),
    "pictures/b/1.png": (*SMOKE, "--dataset", "pictures"),
    "results/baselines/smoke/records/a.parquet": (*SMOKE, "--defense", "undefended"),
    "zoo/digits--undefended.json": (*SMOKE, "--defense", "undefended"),
    "zoo/digits--undefended.safetensors": (running.main, "--matrix", "smoke", "--defense", "undefended"),
    "images.npz": (*JUDGE, "images.npz"),
    "images.pt": (*JUDGE, "images.pt"),
    "numbered/0001.png": (*JUDGE, "numbered"),
    "m.toml": (running.main, "--matrix", "m.toml"),
}
"""The file that is none, and the command that would read it."""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the commands need besides, and a zoo of its own."""
    (tmp_path / "network_of_no_files.py").write_text(NETWORK)
    for name in ("pictures/a/0.png", "pictures/b/0.png", "numbered/0000.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    (tmp_path / "zoo").mkdir()
    for name in ("digits--undefended.json", "digits--undefended.safetensors"):
        (tmp_path / "zoo" / name).write_bytes((weights.ZOO / name).read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "network_of_no_files", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "ZOO", tmp_path / "zoo")
    monkeypatch.setenv("MANIFOLD_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(timings, "timings_file", lambda device: tmp_path / "timings.jsonl")  # of no earlier test
    return tmp_path


@pytest.fixture(params=["pipe", "device"])
def placed(request: pytest.FixtureRequest, work: Path) -> Iterator[object]:
    """A function that puts a pipe or a device in place of a file; at the end, nobody may have opened the pipe."""
    opened, pipes = [], []

    def write(path: Path) -> None:
        with path.open("wb"):  # waits for a reader, who meets an empty file
            opened.append(path)

    def place(name: str) -> None:
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if request.param == "device":
            path.symlink_to(os.devnull)
            return
        os.mkfifo(path)
        pipes.append(path)
        threading.Thread(target=write, args=(path,), daemon=True).start()

    yield place
    read = list(opened)
    for path in pipes:
        with suppress(OSError):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # ends the thread
    assert not read


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_file_is_refused_by_name_and_never_opened(placed, case):
    main, *arguments = CASES[case]
    placed(case)
    end = called(main, *arguments)
    line = end.err.rstrip("\n").split("\n")[-1]
    assert end.code == 2 and "error: " in line and Path(case).name in line, end


def test_a_run_s_folder_that_python_reads_is_no_exception(placed):
    placed("run/records/index.json")
    with pytest.raises(mb.InputError, match=r"index\.json"):
        mb.load("run")


def test_what_a_cache_holds_is_left_out(placed, work):
    """Caches only save time; what cannot be read there is computed anew."""
    placed("cache.jsonl")
    file = work / "cache.jsonl"
    with mock.patch.object(timings, "timings_file", lambda device: file):
        timings.remember("cpu", Kind("d", "s", "d", None, "linf", 1.0), 1.0, 1.0)
        timings.estimator_of("cpu")
    assert kernels._known(file) == {}
    assert training._resume(torch.nn.Linear(1, 1), mock.Mock(), file, "") == 0


def test_a_link_that_leads_nowhere_is_no_error_where_nobody_reads_it(work):
    """Such as a link in a folder of data whose disk is not there."""
    (work / "data").mkdir()
    (work / "data" / "lost").symlink_to("nowhere")
    (work / "data" / "round").symlink_to("round")
    assert called(*SMOKE, "--data", "data").code == 0
