"""A package of somebody else's with a defense, an attack and a data set: found by name, run against ours."""

from __future__ import annotations

import pytest
from commands import bench_run, command, figures, one_error_line, records

MODULE = '''
"""What a user writes."""
from dataclasses import dataclass
from functools import cached_property

import torch

from manifold_bench.attacks.base import Attack
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.defenses.base import Defense, DefenseSpec, LabelledImages


@dataclass(frozen=True, kw_only=True)
class BlurSpec(DefenseSpec):
    """share: how much of the neighbours is mixed in."""

    share: float = 0.5


class Blur(Defense):
    Spec = BlurSpec

    def __init__(self, spec):
        super().__init__(spec)
        data = Digits().train
        means = [data.images[data.labels == c].mean(0).flatten() for c in range(10)]
        self.register_buffer("means", torch.stack(means))

    def perceived(self, x):
        return (1 - self.spec.share) * x + self.spec.share * torch.nn.functional.avg_pool2d(x, 3, 1, 1)

    def forward(self, x):
        return -torch.cdist(self.perceived(x).flatten(1), self.means)


@dataclass(frozen=True, kw_only=True)
class Darken(Attack):
    strength: float = 1.0

    @property
    def knowledge(self):
        return "oblivious"

    def run(self, target, x, y, eps, seed):
        return (x - eps * self.strength).clamp(0, 1)

    def passes(self):
        return 0, 0


@dataclass(frozen=True)
class Inverted(Digits):
    name = "inverted-digits"
    revision = "inverted-1"
    zoo = "inverted-digits"

    @cached_property
    def test(self):
        return LabelledImages(1 - super().test.images, super().test.labels)
'''
ENTRY_POINTS = """
[manifold_bench.defenses]
blur = their_package:Blur
lost = their_package:Lost

[manifold_bench.attacks]
darken = their_package:Darken

[manifold_bench.datasets]
inverted-digits = their_package:Inverted
"""
MATRIX = """
datasets = [{ name = "digits", n = 10 }, { name = "inverted-digits", n = 10 }]
defenses = [{ name = "blur", share = 0.25 }, "tiny:NearestMean"]
[[attacks]]
name = "darken"
eps = [0.1]
strength = 0.5
[[attacks]]
name = "pgd"
eps = [0.1]
steps = 3
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder as pip leaves it, to be put on the path."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "their_package.py").write_text(MODULE, encoding="utf-8")
    info = folder / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    return folder


def test_it_is_listed(installed, tmp_path):
    done = command("list", cache=tmp_path, path=str(installed))
    assert done.returncode == 0
    for line in ("blur", "darken", "inverted-digits"):
        assert f"\n  {line}" in done.stdout


def test_it_runs_against_what_is_there(installed, tmp_path):
    (tmp_path / "matrix.toml").write_text(MATRIX, encoding="utf-8")
    out = tmp_path / "out"
    done = bench_run(tmp_path / "matrix.toml", out, path=str(installed))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = records(out)
    assert set(rows["dataset"]) == {"digits", "inverted-digits"}
    assert set(rows["defense"]) == {"blur(share=0.25)", "tiny:NearestMean"}
    assert set(rows["attack"]) == {"clean", "darken(strength=0.5)", "pgd(steps=3)"}
    assert (rows["status"] == "ok").all() and rows["valid"].all()
    assert rows["linf"][rows["attack"] == "darken(strength=0.5)"].max() == pytest.approx(0.05)
    assert "worst-case" in figures(out).index.get_level_values("attack")


def test_what_it_registers_but_does_not_hold_is_named(installed, tmp_path):
    done = command(
        "run", "--matrix", "smoke", "--defense", "lost", "--out", tmp_path / "out", cache=tmp_path, path=str(installed)
    )
    message = one_error_line(done)
    assert "'lost'" in message and "their_package:Lost" in message
