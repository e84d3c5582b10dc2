"""Identity: it changes with all code and every parameter that a result depends on, and with nothing else."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass, field, make_dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from users import importable, write

from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.transfer import Transfer
from manifold_bench.defenses import identity
from manifold_bench.defenses.enhanced_inc import RobustManifoldTraining
from manifold_bench.defenses.gmvae import GaussianMixtureVAE
from manifold_bench.defenses.identity import TRAINABLE, parameters, registered, source_sha256, system
from manifold_bench.defenses.variational_autoencoder import VariationalAutoencoder


def hashed(folder: Path, module: str = "mine", name: str = "Net") -> str | None:
    """The hash of a class in a folder of user code."""
    with importable(folder):
        return source_sha256(getattr(importlib.import_module(module), name), module)


TREE = {
    "mine.py": """
import torch
import plain, deep.down.below as aliased
from deep import sibling
from starred import *
from based import Base
import importlib
class Net(Base):
    def forward(self, x):
        import lazy
        from relative import first
        importlib.import_module("dynamic").value
        return x
""",
    "plain.py": "import circular\nvalue = 1\n",
    "circular.py": "import plain\nvalue = 1\n",
    "deep/__init__.py": "value = 1\n",
    "deep/sibling.py": "value = 1\n",
    "deep/down/__init__.py": "value = 1\n",
    "deep/down/below.py": "value = 1\n",
    "starred/__init__.py": "__all__ = ['inner']\n",
    "starred/inner.py": "value = 1\n",
    "based.py": "import of_the_base\nclass Base: pass\n",
    "of_the_base.py": "value = 1\n",
    "lazy.py": "value = 1\n",
    "relative/__init__.py": "from . import first\nfrom .second import value\n",
    "relative/first.py": "def f():\n    from .third import value\n",
    "relative/second.py": "value = 1\n",
    "relative/third.py": "from .. import nothing_above\n",
    "dynamic.py": "value = 1\n",
}
STRANGERS = {"stranger.py": "value = 1\n", "deep/stranger.py": "value = 1\n", "settings.toml": "value = 1\n"}


@pytest.mark.parametrize("changed", TREE)
def test_a_change_of_any_module_that_a_class_runs_changes_its_hash(tmp_path, changed):
    before = hashed(write(tmp_path, TREE))
    assert before == hashed(tmp_path) is not None
    write(tmp_path, {changed: TREE[changed] + "other = 2\n"})
    assert hashed(tmp_path) != before


@pytest.mark.parametrize("changed", STRANGERS)
def test_a_change_of_any_other_file_does_not(tmp_path, changed):
    before = hashed(write(tmp_path, TREE | STRANGERS))
    write(tmp_path, {changed: "value = 2\n"})
    assert hashed(tmp_path) == before


@st.composite
def programs(draw) -> dict[str, str]:
    """Modules m0 … that import one another in any way, circles included; `Net` is in m0."""
    n = draw(st.integers(1, 6))
    files = {}
    for i in range(n):
        imports = []
        for target in draw(st.lists(st.integers(0, n - 1), max_size=3)):
            form = draw(st.sampled_from(["import {}", "def f():\n    import {}", "def f():\n    from {} import value"]))
            imports.append(form.format(f"m{target}"))
        files[f"m{i}.py"] = "\n".join([f"value = {i}", *imports, "class Net: pass", ""])
    return files


def reached(files: dict[str, str]) -> set[str]:
    """The modules that m0 leads to, itself included."""
    found = {"m0.py"}
    while True:
        more = {
            name
            for name in files
            if any(f" {name[:-3]}\n" in files[of] or f" {name[:-3]} " in files[of] for of in found)
        }
        if more <= found:
            return found
        found |= more


@given(files=programs(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_the_hash_covers_exactly_what_imports_lead_to(files, data):
    changed = data.draw(st.sampled_from(sorted(files)))
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        before = hashed(write(Path(one), files), "m0")
        moved = hashed(write(Path(other), files), "m0")
        after = hashed(write(Path(other), {changed: files[changed] + "more = 1\n"}), "m0")
    assert moved == before
    assert (after != before) == (changed in reached(files))


def test_two_helpers_that_change_places_change_the_hash(tmp_path):
    a, b = "value = 1\n", "value = 2\n"
    net = "import a, b\nclass Net: pass\n"
    assert hashed(write(tmp_path / "1", {"mine.py": net, "a.py": a, "b.py": b})) != hashed(
        write(tmp_path / "2", {"mine.py": net, "a.py": b, "b.py": a})
    )


def test_where_files_lie_and_what_their_folders_are_called_is_no_part_of_the_hash(tmp_path):
    net, helper = "from .helper import value\nclass Net: pass\n", "value = 1\n"
    homes = {"theirs": "theirs", "other/place": "other.place", "a/b/c": "a.b.c"}
    found = set()
    for number, (home, package) in enumerate(homes.items()):
        packages = [home[: len(home) - len(home.split("/", k)[-1])] for k in range(1, home.count("/") + 1)] + [home]
        inits = {f"{folder.rstrip('/')}/__init__.py": '"""A package."""\n' for folder in packages}
        folder = write(tmp_path / str(number), inits | {f"{home}/net.py": net, f"{home}/helper.py": helper})
        found.add(hashed(folder, f"{package}.net"))
    assert len(found) == 1
    alone = {
        hashed(write(tmp_path / "alone", {"x.py": "class Net: pass\n", "p/y.py": "class Net: pass\n"}), name)
        for name in ("x", "p.y")
    }
    assert len(alone) == 1


def test_classes_of_one_module_and_classes_that_another_module_makes_are_distinguished(tmp_path):
    factory = "def make(width):\n    class Net:\n        size = width\n    return Net\n"
    write(
        tmp_path,
        {
            "two.py": "class A: pass\nclass B: pass\n",
            "factory.py": factory,
            "three.py": "from factory import make\nNet = make(3)\n",
            "four.py": "from factory import make\nNet = make(4)\n",
        },
    )
    found = [
        hashed(tmp_path, "two", "A"),
        hashed(tmp_path, "two", "B"),
        hashed(tmp_path, "three"),
        hashed(tmp_path, "four"),
    ]
    assert len(set(found)) == 4


def test_a_module_that_cannot_be_read_as_python_counts_by_its_content(tmp_path):
    write(tmp_path, {"mine.py": "class Net:\n    def f(self):\n        import broken, missing\n", "broken.py": "def ("})
    before = hashed(tmp_path)
    write(tmp_path, {"broken.py": "def ("[::-1]})
    assert hashed(tmp_path) != before


def test_this_project_s_own_code_counts_by_its_version_alone():
    for cls in (GaussianMixtureVAE, VariationalAutoencoder, PGD, Transfer):
        assert source_sha256(cls) is None


def test_an_installed_package_counts_by_its_release(tmp_path):
    def found(version: str, code: str, requirement: str = "") -> str | None:
        folder = write(
            tmp_path / f"{version}{len(code)}" / "site-packages",
            {
                "robust_nets.py": f"{requirement}class Net: pass\n{code}",
                f"robust_nets-{version}.dist-info/METADATA": "Metadata-Version: 2.1\n"
                f"Name: robust-nets\nVersion: {version}\n",
                f"robust_nets-{version}.dist-info/top_level.txt": "robust_nets\n",
            },
        )
        identity._distributions.cache_clear()
        try:
            return hashed(folder, "robust_nets")
        finally:
            identity._distributions.cache_clear()

    assert found("1.0", "") == found("1.0", "# compiled elsewhere") != found("1.1", "")
    assert None not in (found("1.0", ""), found("1.1", ""))


def test_a_base_class_of_the_user_s_counts_for_what_is_installed_too(tmp_path):
    write(
        tmp_path,
        {"site-packages/shipped.py": "from base import Base\nclass Net(Base): pass\n", "base.py": "class Base: pass\n"},
    )
    with importable(tmp_path):
        before = hashed(tmp_path / "site-packages", "shipped")
    write(tmp_path, {"base.py": "class Base:\n    width = 3\n"})
    with importable(tmp_path):
        assert hashed(tmp_path / "site-packages", "shipped") != before


def test_a_system_is_called_as_it_is_registered_however_it_is_written():
    assert (
        system(GaussianMixtureVAE, "defenses", written="manifold_bench.defenses.gmvae:GaussianMixtureVAE").name
        == "gmvae"
    )
    assert system(GaussianMixtureVAE, "defenses", written="gmvae").name == "gmvae"
    assert system(RobustManifoldTraining, *TRAINABLE).name == "robust-manifold-training"
    assert system(VariationalAutoencoder, *TRAINABLE).name == "vae"
    assert system(PGD, "attacks").name == "pgd"
    assert system(Transfer, "attacks", written="transfer").name == "Transfer"


def test_an_entry_point_that_cannot_be_loaded_is_nobody_s_name(monkeypatch):
    lost = EntryPoint("lost", "no.such.module:GaussianMixtureVAE", "manifold_bench.defenses")
    monkeypatch.setitem(registered("defenses"), "a-lost-one", lost)
    assert system(GaussianMixtureVAE, "defenses").name == "gmvae"


def test_no_name_is_registered_for_a_defense_and_for_a_part():
    assert not registered("defenses").keys() & registered("parts").keys()


@dataclass(frozen=True)
class Momentum:
    method: Literal["momentum"] = "momentum"
    rate: float = 0.1


@dataclass(frozen=True)
class Adam:
    method: Literal["adam"] = "adam"
    rate: float = 0.1


@dataclass(frozen=True)
class Gauss:
    rate: float = 0.1


@dataclass(frozen=True)
class Cauchy:
    rate: float = 0.1


@dataclass(frozen=True)
class Spec:
    width: int
    solver: Momentum | Adam = field(default_factory=Momentum)
    prior: Gauss | Cauchy = field(default_factory=lambda: Gauss(0.2))
    layers: tuple[Gauss | Cauchy, ...] = ()
    number: int | float | bool | str | None = 1


rates = st.sampled_from([0.1, 0.2, 1.0])
priors = st.builds(Gauss, rates) | st.builds(Cauchy, rates)
specs = st.builds(
    Spec,
    width=st.integers(1, 2),
    solver=st.builds(Momentum, rate=rates) | st.builds(Adam, rate=rates),
    prior=priors,
    layers=st.lists(priors, max_size=2).map(tuple),
    number=st.sampled_from([None, 0, 1, 1.0, True, "1", -0.0, 0.0, "default"]),
)


@given(specs, specs)
@settings(max_examples=500)
def test_parameters_are_equal_exactly_where_specs_are(a, b):
    assert (repr(parameters(a)) == repr(parameters(b))) == (repr(a) == repr(b))


def test_what_is_the_default_is_left_out():
    assert parameters(Spec(3)) == {"width": 3}
    assert parameters(Spec(3, solver=Momentum(rate=0.5))) == {"width": 3, "solver": {"method": "momentum", "rate": 0.5}}
    assert parameters(Spec(3, prior=Gauss())) == {"width": 3, "prior": {"class": "Gauss"}}


@given(spec=specs)
def test_an_option_with_a_default_changes_nothing_while_nobody_sets_it(spec):
    extended = make_dataclass("Spec", [("option", int, field(default=5))], bases=(Spec,), frozen=True)
    values = {one.name: getattr(spec, one.name) for one in dataclasses.fields(spec)}
    assert parameters(extended(**values)) == parameters(spec)
    assert parameters(extended(**values, option=6)) == parameters(spec) | {"option": 6}
