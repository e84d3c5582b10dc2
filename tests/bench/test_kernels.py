"""Kernels: what is chosen, what of it the records say, and whether layers that round by the size of a batch are found.

Tests of exact bits hold for the settings of `running.environment` (tests/conftest.py makes them), on x86 processors.
"""

from __future__ import annotations

import json
import os

import pytest
import torch
from commands import bench_run, records
from handmade import StoredJob, a_run, cell, run
from tiny import RoundsBySize
from torch import nn

from manifold_bench.attacks.batching import batch_rows
from manifold_bench.bench.gate.gate import Gate
from manifold_bench.bench.gate.promotion import promote
from manifold_bench.bench.records.provenance import kernels_text, uneven_text
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.environment import SETTINGS, choose_kernels
from manifold_bench.bench.running.kernels import LayerCheck, kernels

IMAGES = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))

LAYERS = [
    nn.Sequential(nn.Flatten(), nn.Linear(36, 10)),
    nn.Sequential(nn.Flatten(), nn.Linear(36, 500), nn.ReLU(), nn.Linear(500, 11)),
    nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 4, stride=2), nn.Flatten()),
    nn.Sequential(nn.ConvTranspose2d(1, 8, 4, stride=2), nn.Flatten(), nn.Linear(8 * 14 * 14, 3)),
]


@pytest.fixture(autouse=True)
def cache(own_cache):
    return own_cache / "kernels"


def uneven(network):
    with LayerCheck(network, IMAGES) as check:
        network(IMAGES)
    return check.uneven()


def planted():
    return nn.Sequential(nn.Flatten(), RoundsBySize(36, 7))


@pytest.mark.parametrize("network", LAYERS, ids=range(len(LAYERS)))
def test_layers_are_even_with_the_kernels_that_are_chosen(network):
    assert uneven(network) == []


def test_a_layer_that_rounds_by_the_size_of_the_batch_is_found():
    (found,) = uneven(planted())
    assert found.startswith("RoundsBySize(in_features=36") and found.endswith("batches of 8")


def test_what_the_same_kernels_were_found_to_do_is_not_checked_again(cache):
    uneven(planted())
    before = RoundsBySize.calls
    assert uneven(planted()) and RoundsBySize.calls == before + 1  # the one call that notes the layer
    for file in cache.iterdir():
        file.write_text("[damaged")
    assert uneven(planted()) and RoundsBySize.calls > before + 2


def test_other_kernels_are_checked_anew(monkeypatch, cache):
    uneven(planted())
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    uneven(planted())
    assert len(list(cache.iterdir())) == 2


def test_a_layer_that_takes_no_other_batch_is_no_fault():
    class OnlyEight(nn.Linear):
        def forward(self, x):
            return super().forward(x.view(8, -1))

    assert uneven(nn.Sequential(nn.Flatten(), OnlyEight(36, 2))) == []


def test_checks_use_batches_as_large_as_attacks_do():
    seen = []

    class Seeing(nn.Linear):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    uneven(nn.Sequential(nn.Flatten(), Seeing(36, 2)))
    assert max(seen) == batch_rows(IMAGES) and min(seen) == 8


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    choose_kernels()
    assert os.environ["MKL_CBWR"] == "COMPATIBLE" == kernels()["environment"]["MKL_CBWR"]
    monkeypatch.delenv("MKL_CBWR")
    choose_kernels()
    assert os.environ["MKL_CBWR"] == SETTINGS["MKL_CBWR"]


def of_this_machine(folder):
    """The description of this machine's kernels in a run, which may also reuse records of another machine."""
    here = {name: value for name, value in kernels().items() if name != "environment"}  # a run chooses its own
    (described,) = [one for one in Results.load(folder).distinct_kernels if one.items() >= here.items()]
    return described


def test_records_say_which_kernels_made_them_and_a_baseline_keeps_it(tmp_path):
    out = tmp_path / "out"
    assert bench_run("smoke", out, "--defense", "undefended", "--attack", "fgsm", "--n", "8").returncode == 0
    described = of_this_machine(out)
    assert described["environment"]["MKL_CBWR"] == SETTINGS["MKL_CBWR"]
    assert described["instructions"] == torch.backends.cpu.get_cpu_capability() and described["threads"] == 1
    stored = json.loads((out / "run.json").read_text())
    assert described in stored["kernels"] and kernels_text(described).startswith(described["processor"])
    assert records(out)["status"].eq("ok").any()
    promote(Results.load(out), tmp_path / "baseline", force=True)
    assert of_this_machine(tmp_path / "baseline") == described


def test_a_run_says_in_one_line_that_its_layers_are_uneven(tmp_path):
    run = bench_run("smoke", tmp_path, "--defense", "tiny:Uneven", "--n", "8", "--attack", "fgsm")
    assert run.returncode == 0
    described = of_this_machine(tmp_path)
    assert len(described["uneven"]) == 1 and described in json.loads((tmp_path / "run.json").read_text())["kernels"]
    assert [line for line in run.stdout.splitlines() if line.startswith("note: ")] == [uneven_text([described])]


def test_a_gate_between_other_kernels_says_so_and_one_between_the_same_does_not():
    amd, intel = ({**kernels(), "processor": name, "uneven": []} for name in ("one", "other"))

    def warnings(*sides):
        before, after = (a_run(run(cell("a", labels=[0])), kernels=side) for side in sides)
        return Gate(before, after, []).warnings

    (warning,) = warnings([amd], [intel])
    assert "different kernels (one" in warning
    assert warnings([amd], [amd]) == [] and warnings([amd], [amd | {"uneven": ["a layer"]}]) == []
    assert warnings([], [amd]) == []


def test_cells_without_kernels_are_read_as_before(tmp_path):
    Store(tmp_path).write(StoredJob({}), cell("a", (0.1,)))
    assert Results.load(tmp_path).distinct_kernels == []
