"""Users' code and weights that change between two runs: nothing stored for the old ones is used for the new ones."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from users import importable, write

import manifold_bench as mb
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
    hashes = {other_state_sha256(Net(torch.full((3,), value))) for value in (1.0, 2.0)}
    assert len(hashes) == 2 and None not in hashes


CODE = """
import torch
SCALE = 1.0
def scaled(x):
    return SCALE * x
class Net(torch.nn.Module):
    def forward(self, x):
        return scaled(x.flatten(1)[:, :10])
    @property
    def offset(self):
        return 0
"""

EDITS = {
    "a constant": ("SCALE = 1.0", "SCALE = 2.0"),
    "a function": ("return SCALE * x", "return SCALE + x"),
    "a method": (":10]", ":10] + 1"),
    "a property": ("return 0", "return 1"),
    "a file that is no Python any more": ("class Net", "class class Net"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_file_that_changed_since_it_was_imported_is_refused(folder, edit):
    name = f"edited_{list(EDITS).index(edit)}"
    path = folder / f"{name}.py"
    write(folder, {path.name: CODE})

    def evaluated() -> mb.Results:
        return mb.evaluate(f"{path}:Net", "digits", n=4, attacks=["noise"], eps=0.1)

    evaluated()
    write(folder, {path.name: "# a remark\n\n" + CODE})  # moves every line, and changes nothing
    evaluated()
    write(folder, {path.name: CODE.replace(*EDITS[edit])})
    with pytest.raises(mb.InputError, match="changed since this program imported it"):
        evaluated()
    if edit != "a file that is no Python any more":
        importlib.reload(sys.modules[name])
        evaluated()


def test_a_helper_that_changed_is_refused_too(folder):
    main = "import torch\nfrom edited_helper import scale\nclass Net(torch.nn.Module):\n"
    main += "    def forward(self, x):\n        return scale(x.flatten(1)[:, :10])\n"
    write(folder, {"edited_main.py": main, "edited_helper.py": "def scale(x):\n    return x\n"})
    named = f"{folder / 'edited_main.py'}:Net"
    mb.evaluate(named, "digits", n=4, attacks=["noise"], eps=0.1)
    write(folder, {"edited_helper.py": "def scale(x):\n    return 0 * x\n"})
    with pytest.raises(mb.InputError, match=r"edited_helper\.py: it has changed"):
        mb.evaluate(named, "digits", n=4, attacks=["noise"], eps=0.1)
    assert Path(sys.modules["edited_helper"].__file__ or "").parent == folder
