"""Names to code: every registered name loads, an unknown one is answered with the nearest."""

from __future__ import annotations

import re
import sys
import textwrap

import pytest

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.gradient import PGD
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.registry import find, nearest
from manifold_bench.defenses.base import Defense, Trainable
from manifold_bench.defenses.identity import registered

BASES = {"datasets": Dataset, "defenses": Defense, "attacks": Attack, "parts": Trainable}


@pytest.mark.parametrize("kind", BASES)
def test_every_registered_name_is_a_class_of_its_kind(kind):
    assert registered(kind)
    for name in registered(kind):
        assert issubclass(find(kind, name), BASES[kind])


def test_names_of_the_house_are_there():
    assert {"digits", "mnist", "mnist5k"} <= set(registered("datasets"))
    assert {"undefended", "pgd-training", "inc", "gmvae"} <= set(registered("defenses"))
    assert {"noise", "fgsm", "pgd", "art", "foolbox"} <= set(registered("attacks"))


def test_a_class_by_its_module():
    assert find("attacks", "manifold_bench.attacks.gradient:PGD") is PGD is find("attacks", "pgd")


def test_a_library_attack_by_its_class():
    assert find("attacks", "art:DeepFool") is find("attacks", "art")


def refused(kind: str, name: str) -> str:
    with pytest.raises(InputError) as caught:
        find(kind, name)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        ("defenses", "undefnded", "undefended"),
        ("defenses", "pgd_training", "pgd-training"),
        ("attacks", "fgms", "fgsm"),
        ("datasets", "minst", "mnist"),
        ("datasets", "mnist-5k", "mnist5k"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(kind, name, meant):
    text = refused(kind, name)
    assert f"{name!r}; did you mean {meant!r}?" in text and "manifold-bench list" in text


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("name", ["zzzzzzzz", "", "0", "z y", "zzz\nzzz"])
def test_a_name_like_no_other_is_said_to_be_unknown(kind, name):
    text = refused(kind, name)
    assert "unknown" in text and "did you mean" not in text and repr(name) in text


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("no.such.module:Thing", "cannot import"),
        ("manifold_bench.attacks.gradient:PDG", "did you mean 'PGD'?"),
        ("manifold_bench.attacks.gradient:Nothing9", "has no 'Nothing9'"),
        ("manifold_bench.attacks.gradient:steepest", "steepest is not a class that derives from"),
        ("manifold_bench.defenses.undefended:Undefended", "Undefended is not a class that derives from"),
    ],
)
def test_a_module_without_that_class_is_named(name, hint):
    text = refused("attacks", name)
    assert hint in text and repr(name) in text


def test_what_is_no_model_is_said_once():
    said = refused("defenses", "torch:nn")
    assert "torch.nn is a Python module" in said and said.count("give a torch.nn.Module") == 1


@pytest.mark.parametrize("name", [":PGD", ":", "manifold_bench.attacks.gradient:", ".:PGD", "..gradient:PGD"])
def test_a_module_that_cannot_have_a_name_is_named(name):
    assert repr(name) in refused("attacks", name)


@pytest.mark.parametrize("source", ["def broken(:", "raise RuntimeError('no')", "1 / 0"])
def test_a_module_that_breaks_when_imported_is_named(tmp_path, monkeypatch, source):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_plugin.py").write_text(f"import math\n\n{source}\n")
    for name in ("broken_plugin:Thing", f"{tmp_path / 'broken_plugin.py'}:Thing", str(tmp_path / "broken_plugin.py")):
        assert re.search(r"broken_plugin\.py,? line 3", refused("attacks", name))


@pytest.mark.parametrize("name", ["pgd:Other", "fgsm:DeepFool", "noise:"])
def test_only_adapters_take_a_class_of_their_own(name):
    assert repr(name) in refused("attacks", name)


def test_a_package_from_outside_is_found(tmp_path, monkeypatch):
    (tmp_path / "outside_package.py").write_text(
        textwrap.dedent("""
            from manifold_bench.defenses.base import Defense
            class Mine(Defense):
                def forward(self, x):
                    return x.flatten(1)[:, : self.num_classes]
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert find("defenses", "outside_package:Mine").__name__ == "Mine"
    finally:
        sys.modules.pop("outside_package", None)


def test_a_file_without_a_name_in_it_is_answered_with_what_it_holds(tmp_path):
    path = tmp_path / "held_models.py"
    path.write_text(
        "import math\nfrom functools import partial\nfrom torch import Tensor, nn\n"
        "def images(n): return n\n"
        "net = nn.Flatten()\nclass Mine(nn.Module): ...\ndef make(): return net\n_hidden, number = nn.Flatten(), 3\n"
    )
    try:
        said = refused("defenses", str(path))
    finally:
        sys.modules.pop("held_models", None)
        sys.path.remove(str(tmp_path))
    assert f"{path}:net" in said and said.endswith("it has net, Mine, images, make")


@pytest.mark.parametrize(("kind", "word"), [("datasets", "no such folder"), ("defenses", "no such file")])
@pytest.mark.parametrize("name", ["./my_images", "absent/folder", "/absent"])
def test_a_path_that_does_not_exist_is_said_to(kind, word, name):
    assert word in refused(kind, name)


@pytest.mark.parametrize("name", ["my_images", "digit", "digits.", "MNIST"])
def test_an_unknown_data_set_may_have_been_meant_as_a_folder(name):
    with pytest.raises(InputError) as caught:
        find("datasets", name)
    said = str(caught.value)
    assert repr(name) in said and "folder" in said and "\n" not in said
    assert all(known in said for known in registered("datasets"))


def test_the_nearest_word():
    assert nearest("stepz", ["steps", "norm"]) == "; did you mean 'steps'?"
    assert nearest("PGD", ["pgd", "fab"]) == "; did you mean 'pgd'?"
    for known in (["Net", "net"], ["net", "Net"]):
        assert nearest("Nett", known) == "; did you mean 'Net'?" and nearest("nett", known) == "; did you mean 'net'?"
    assert nearest("carmon2019", ["Carmon2019Unlabeled", "fab"]) == "; did you mean 'Carmon2019Unlabeled'?"
    assert nearest("qqq", ["steps", "norm"]) == nearest("x", []) == ""
