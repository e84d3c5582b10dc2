"""Users' files import the helpers in their own folders, or are refused; they never get those of another folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from users import write

import manifold_bench as mb
from manifold_bench.bench.__main__ import main
from manifold_bench.bench.planning.registry import find
from manifold_bench.defenses.identity import locate

NET = """
import torch
from {helper} import SCALE
from torch import nn

class Net(nn.Module):
    def forward(self, x):
        return SCALE * x.flatten(1)[:, :10]
"""

ATTACK = """
from dataclasses import dataclass
from manifold_bench.attacks.base import ViewAttack

@dataclass(frozen=True, kw_only=True)
class Mine(ViewAttack):
    def run(self, target, x, y, eps, seed):
        from {helper} import SCALE
        return (x + SCALE * eps).clamp(0, 1)
    def passes(self):
        return 1, 1
"""

DATA = """
from {helper} import SCALE
from manifold_bench.bench.datasets.digits import Digits

class Mine(Digits):
    pass
"""

KINDS = {"defenses": (NET, "Net"), "attacks": (ATTACK, "Mine"), "datasets": (DATA, "Mine")}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of users' code. At the end, modules in it are forgotten, and the path of modules is what it was."""
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    added = {name: vars(sys.modules[name]) for name in set(sys.modules) - modules}
    places = {name: [one.get("__file__"), *one.get("__path__", ())] for name, one in added.items()}
    for name, found in places.items():
        if any(place and Path(place).is_relative_to(tmp_path) for place in found):
            del sys.modules[name]


def two(folder: Path, text: str, helper: str = "beside_helper", places: tuple[str, ...] = ("{}.py",)) -> list[Path]:
    """Write first/one.py and second/two.py, each with helpers of the same names that differ; return both files."""
    code = text.format(helper=helper)
    for home, scale in (("first", 1.0), ("second", -1.0)):
        write(folder / home, {place.format(helper.replace(".", "/")): f"SCALE = {scale}\n" for place in places})
    write(folder, {"first/beside_one.py": code, "second/beside_two.py": code})
    return [folder / "first/beside_one.py", folder / "second/beside_two.py"]


def refused(kind: str, name: str, *files: Path) -> str:
    """Return the message with which that name is refused, which has to name these files."""
    with pytest.raises(mb.InputError) as caught:
        find(kind, name)
    said = str(caught.value)
    assert "\n" not in said and repr(name) in said and all(str(file) in said for file in files)
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_the_helper_of_another_folder_is_refused(folder, kind):
    text, word = KINDS[kind]
    one, other = two(folder, text)
    find(kind, f"{one}:{word}")
    for _ in range(2):
        refused(kind, f"{other}:{word}", *(file.with_name("beside_helper.py") for file in (one, other)))
    find(kind, f"{one}:{word}")


@pytest.mark.parametrize(
    ("helper", "place"),
    [("beside_package", "{}/__init__.py"), ("beside_package.inner", "{}.py"), ("beside_package.a.b", "{}/__init__.py")],
)
def test_packages_with_and_without_an_init_file_are_compared_too(folder, helper, place):
    one, other = two(folder, NET, helper, (place,))
    find("defenses", f"{one}:Net")
    refused(
        "defenses", f"{other}:Net", *(file.parent / place.format(helper.replace(".", "/")) for file in (one, other))
    )


def test_a_module_in_folders_without_init_files_may_be_imported_late(folder):
    """No folder around it is imported when the file is."""
    text = ATTACK.replace("from {helper} import SCALE", "import bare.inner.part")
    write(folder, {"late.py": text, "bare/inner/part.py": "SCALE = 1.0\n"})
    find("attacks", f"{folder / 'late.py'}:Mine")
    assert locate("bare.inner.part")[0] == (folder / "bare/inner/part.py").resolve()


def test_the_helper_of_a_helper_is_compared_too(folder):
    one, other = two(folder, NET, "beside_helper")
    for file, own in ((one, "own_of_one"), (other, "own_of_two")):
        write(file.parent, {f"{own}.py": "from beside_helper import SCALE\n"})
        file.write_text(NET.format(helper=own), encoding="utf-8")
    find("defenses", f"{one}:Net")
    refused("defenses", f"{other}:Net", one.with_name("beside_helper.py"), other.with_name("beside_helper.py"))


@pytest.mark.parametrize("helper", ["colorsys", "yaml"])
def test_a_helper_with_the_name_of_an_installed_module_is_refused(folder, helper):
    _, other = two(folder, NET, helper)
    assert f"rename {other.with_name(helper)}.py" in refused("defenses", f"{other}:Net")


def test_a_helper_that_is_imported_wrongly_is_the_reason_even_if_its_lack_ends_the_import(folder):
    one, other = two(folder, NET)
    one.with_name("beside_helper.py").write_text("SCALE, OTHER = 1, 2", encoding="utf-8")
    other.write_text("from beside_helper import WORD\n" + NET.format(helper="beside_helper"), encoding="utf-8")
    find("defenses", f"{one}:Net")
    refused("defenses", f"{other}:Net", one.with_name("beside_helper.py"), other.with_name("beside_helper.py"))


def test_files_of_the_same_name_are_refused_by_both_names(folder):
    one, other = two(folder, NET)
    same = other.rename(other.with_name(one.name))
    find("defenses", f"{one}:Net")
    refused("defenses", f"{same}:Net", one, same)


def test_a_file_that_was_refused_is_taken_once_its_helper_is_renamed(folder):
    one, other = two(folder, NET)
    for file in (one, other):
        find("defenses", f"{one}:Net")
        if file == other:
            refused("defenses", f"{other}:Net")
            other.with_name("beside_helper.py").rename(other.with_name("renamed_helper.py"))
            other.write_text(NET.format(helper="renamed_helper"), encoding="utf-8")
        find("defenses", f"{file}:Net")
    assert (sys.modules["beside_one"].SCALE, sys.modules["beside_two"].SCALE) == (1.0, -1.0)


def test_a_module_that_the_program_took_from_elsewhere_is_not_taken_by_jobs(folder, monkeypatch):
    one, other = two(folder, ATTACK)
    find("attacks", f"{one}:Mine")  # its helper is imported in jobs alone
    with monkeypatch.context() as patched:
        patched.syspath_prepend(other.parent)
        __import__("beside_helper")
    assert sys.modules["beside_helper"].SCALE == -1.0
    refused("attacks", f"{other}:Mine", one.with_name("beside_helper.py"), other.with_name("beside_helper.py"))


def test_helpers_that_are_one_file_or_that_nobody_imports_are_taken(folder):
    one, other = two(folder, NET)
    other.with_name("beside_helper.py").unlink()
    other.with_name("beside_helper.py").symlink_to(one.with_name("beside_helper.py"))
    for file in (one, other):
        write(file.parent, {"never_imported.py": "", "random.py": "", "torch/note.txt": "", "os.py": "", "sys.py": ""})
        with file.open("a", encoding="utf-8") as out:
            out.write("import os, sys\n")  # nothing can take these two names from Python
        find("defenses", f"{file}:Net")


def test_a_link_to_a_file_gets_the_helpers_of_the_file(folder, monkeypatch):
    _, other = two(folder, NET)
    write(folder, {"links/beside_helper.py": "SCALE = 0.0"})
    link = folder / "links/beside_link.py"
    link.symlink_to(other)
    refused("defenses", f"{link}:Net", other)
    monkeypatch.syspath_prepend(link.parent)
    refused("defenses", f"{link}:Net", link.with_name("beside_helper.py"), other.with_name("beside_helper.py"))
    link.with_name("beside_helper.py").unlink()
    del sys.modules["beside_helper"]
    find("defenses", f"{link}:Net")
    assert sys.modules["beside_link"].SCALE == -1.0


def test_two_calls_in_one_program(folder):
    one, other = two(folder, NET)
    write(folder, {"third/beside_three.py": NET.format(helper="third_helper"), "third/third_helper.py": "SCALE = -1.0"})
    options = {"attacks": ["noise"], "eps": 0.1, "n": 8}
    three = f"{folder}/third/beside_three.py:Net"
    clean = [mb.evaluate(model, "digits", **options).table["clean"][0] for model in (f"{one}:Net", three)]
    assert clean[0] != clean[1]
    with pytest.raises(mb.InputError, match="beside_helper"):
        mb.evaluate(f"{other}:Net", "digits", **options)


@pytest.mark.parametrize("where", ["matrix", "command line"])
def test_on_the_command_line_and_in_a_matrix(folder, capsys, where):
    files = two(folder, NET)
    names = [f"{file}:Net" for file in files]
    matrix = folder / "matrix.toml"
    defenses = names if where == "matrix" else ["undefended"]
    lines = ['datasets = [{ name = "digits", n = 4 }]', f"defenses = {defenses}", "[[attacks]]", 'name = "noise"']
    matrix.write_text("\n".join([*lines, "eps = 0.1"]), encoding="utf-8")
    chosen = [word for name in names for word in ("--defense", name)] if where == "command line" else []
    assert main(["run", "--matrix", str(matrix), *chosen, "--out", str(folder / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and all(str(file.with_name("beside_helper.py")) in said[0] for file in files)
    assert not (folder / "out").exists()
