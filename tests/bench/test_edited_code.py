"""Users' code and weights that change between two runs: nothing stored for the old ones is used for the new ones."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from users import importable, write

import manifold_bench as mb
from manifold_bench.bench.planning.stale import check_not_stale
from manifold_bench.defenses.other_state import other_state_sha256, tensors_outside_the_state


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of users' code."""
    with importable(tmp_path):
        yield tmp_path


FUNCTION = """
from pathlib import Path
import torch
from torch import nn

net = nn.Linear(64, 10)
net.load_state_dict(torch.load(Path(__file__).with_name("net.pt"), weights_only=True))

def predict(images):
    return net(images.flatten(1))

class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.nets = [net]
    def forward(self, x):
        return self.nets[0](x.flatten(1))

class NotPersistent(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", net.weight.detach().clone(), persistent=False)
    def forward(self, x):
        return x.flatten(1) @ self.weight.T

class OfItsClass(nn.Module):
    weight = net.weight.detach()
    def forward(self, x):
        return x.flatten(1) @ self.weight.T
"""


@pytest.mark.parametrize("name", ["predict", "Listed", "NotPersistent", "OfItsClass"])
def test_weights_outside_the_state_dict_are_part_of_the_key(folder, name):
    matrix = folder / "matrix.toml"
    file = f"weights_{name.lower()}"
    lines = ['datasets = [{ name = "digits", n = 4 }]', f'defenses = ["{file}:{name}"]', "[[attacks]]", 'name = "fgsm"']
    matrix.write_text("\n".join([*lines, "eps = 0.1"]), encoding="utf-8")
    keys = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        torch.save(nn.Linear(64, 10).state_dict(), folder / "net.pt")
        write(folder, {f"{file}.py": FUNCTION})
        sys.modules.pop(file, None)
        keys.append(set(mb.run(matrix, out=folder / "out", workers=0).stored.identities))
    assert keys[0] == keys[2] and not keys[0] & keys[1]


def test_what_a_module_reaches_besides_its_state():
    class Net(nn.Module):
        def __init__(self, extra: object) -> None:
            super().__init__()
            self.layer, self.extra = nn.Linear(2, 2), extra

    inner = nn.Linear(3, 1)
    extras = (torch.ones(3), np.ones(3), [np.ones(3)], {"a": torch.ones(3)}, [inner], lambda x: inner(x))
    assert [len(list(tensors_outside_the_state(Net(extra)))) for extra in extras] == [1, 1, 1, 1, 2, 2]
    assert other_state_sha256(Net(None)) is None and other_state_sha256(Net(3)) is None
    values = (torch.zeros(4), torch.ones(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32))
    hashes = {other_state_sha256(Net(value)) for value in values}
    assert len(hashes) == 4 and None not in hashes
    odd = [torch.ones(2, dtype=torch.complex64).conj(), nn.LazyLinear(3), torch.eye(3).to_sparse(), [1] * 100_000]
    assert all(isinstance(other_state_sha256(Net([one])), (str, type(None))) for one in odd)


def test_a_name_of_an_attribute_is_no_global_variable():
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unrelated = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.unrelated(x)

    assert other_state_sha256(Headed()) is None


unrelated = nn.Linear(2, 2)


CODE = """
import torch
SCALE = 1.0
def scaled(x, k=1):
    return SCALE * x
class Net(torch.nn.Module):
    K = 1
    def forward(self, x):
        return scaled(x.flatten(1)[:, :10])
    @property
    def offset(self):
        return 0
"""

EDITS = {
    "a constant": ("SCALE = 1.0", "SCALE = 2.0"),
    "a default": ("x, k=1", "x, k=2"),
    "a class attribute": ("K = 1", "K = 2"),
    "a function": ("return SCALE * x", "return SCALE + x"),
    "a method": (":10]", ":10] + 1"),
    "a property": ("return 0", "return 1"),
    "a name": ("scaled", "rescaled"),
    "a file that is no Python any more": ("class Net", "class class Net"),
}


def named(folder: Path, name: str, text: str) -> str:
    write(folder, {f"{name}.py": text})
    return f"{folder / name}.py:Net"


def evaluated(model: str) -> mb.Results:
    return mb.evaluate(model, "digits", n=4, attacks=["noise"], eps=0.1)


@pytest.mark.parametrize("edit", EDITS)
def test_a_file_that_changed_since_it_was_imported_is_refused(folder, edit):
    name = f"edited_{list(EDITS).index(edit)}"
    model = named(folder, name, CODE)
    evaluated(model)
    evaluated(model)
    named(folder, name, CODE.replace(*EDITS[edit]))
    with pytest.raises(mb.InputError, match="changed since this program imported it"):
        evaluated(model)
    if edit != "a file that is no Python any more":
        importlib.reload(sys.modules[name])
        evaluated(model)


@pytest.mark.parametrize("edit", ["a function", "a method", "a property"])
def test_a_function_that_changed_before_the_first_call_is_seen(folder, edit):
    name = f"imported_{list(EDITS).index(edit)}"
    model = named(folder, name, CODE)
    importlib.import_module(name)
    named(folder, name, CODE.replace(*EDITS[edit]))
    with pytest.raises(mb.InputError, match="changed since this program imported it"):
        evaluated(model)


ODD = r"""
import warnings
from unittest.mock import call
json = None
try:
    import json
except ImportError:
    pass
class Answers:
    def __getattr__(self, name):
        raise KeyError(name)
answers = Answers()
SCALE = 2.0
PATTERN = "\d"
if SCALE > 1:
    def twice(x):
        return 2 * x
else:
    def twice(x):
        return x
later = lambda x: x
"""


def test_odd_modules_that_did_not_change_are_taken(folder):
    named(folder, "odd_code", CODE + ODD)
    odd = importlib.import_module("odd_code")
    odd.SCALE = torch.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_not_stale([("odd_code:Net", odd.Net)])
        check_not_stale([("odd_code:Net", odd.Net)])


def test_a_helper_that_changed_is_refused_too(folder):
    main = "import torch\nfrom edited_helper import scale\nclass Net(torch.nn.Module):\n"
    main += "    def forward(self, x):\n        return scale(x.flatten(1)[:, :10])\n"
    write(folder, {"edited_main.py": main, "edited_helper.py": "def scale(x):\n    return x\n"})
    model = f"{folder / 'edited_main.py'}:Net"
    evaluated(model)
    write(folder, {"edited_helper.py": "def scale(x):\n    return 0 * x\n"})
    with pytest.raises(mb.InputError, match=r"edited_helper\.py: it has changed"):
        evaluated(model)
    assert Path(sys.modules["edited_helper"].__file__ or "").parent == folder
