"""What is stored is used again exactly where the same code with the same parameters would run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from commands import bench_run, command
from users import importable, write

from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.planning.refs import DatasetRef, DefenseRef
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.running.training import Training, train
from manifold_bench.defenses.identity import Kind, parameters, registered
from manifold_bench.defenses.undefended import Undefended
from manifold_bench.defenses.weights import from_zoo, weights_hash

pytestmark = pytest.mark.usefixtures("own_cache")

PGD = {"name": "pgd", "eps": [0.1], "steps": 3}


def plan(defense: Any = "undefended", attack: Any = PGD, dataset: str = "digits", measurement: Any = "reconstruction"):
    """Defenses, jobs and measurements of a small matrix."""
    raw = {"datasets": [{"name": dataset, "n": 10}], "defenses": [defense], "attacks": [attack]}
    matrix = parse_matrix(raw | {"measurements": [measurement]}, "test.toml")
    made = make_plan(matrix, Options())
    return made.data[0].defenses[0], made.jobs, made.measurements


def keys(**entries: Any) -> list[str]:
    _, jobs, measured = plan(**entries)
    return [job.key for job in (*jobs, *measured)]


NETWORK = """
from torch import nn
def network(classes):
    return nn.Linear(64, classes)
"""
DEFENSE = """
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.training import Training, accuracy, train_module
from torch.nn import functional as F

class Net(Defense):
    def __init__(self, spec):
        super().__init__(spec)
        from NETWORK import network
        self.network = network(spec.num_classes)

    def forward(self, x):
        return self.network(x.flatten(1))

    def fit(self, train, validation, budget, seed, progress):
        train_module(
            self.network, lambda x, y, done: F.cross_entropy(self(x), y), train,
            Training(stage="net", seed=seed, epochs=1, batch_size=64, rate=0.01), progress,
        )
        return {"validation_accuracy": accuracy(self, validation)}
"""
TRAINED = {"net.py": DEFENSE.replace("NETWORK", "parts_of_it.network"), "parts_of_it/network.py": NETWORK}
PACKAGED = {
    "a/package/__init__.py": "",
    "a/package/net.py": TRAINED["net.py"],
    "parts_of_it/network.py": NETWORK,
}


def trained(folder: Path, module: str) -> tuple[DefenseRef, list[Job]]:
    """The plan for a defense of user code, whose weights are trained where there are none."""
    entry = {"name": f"{module}:Net", "label": "mine"}
    with importable(folder):
        ref = plan(entry)[0]
        if not ref.trained:
            train(Training(ref, DatasetRef("digits", None), ref.weights, seed=0, budget=0.25))
        ref, jobs, _ = plan(entry)
        assert ref.trained
        return ref, jobs


def planned(folder: Path, module: str = "net") -> tuple[DefenseRef, list[Job]]:
    with importable(folder):
        return plan({"name": f"{module}:Net", "label": "mine"})[:2]


def test_a_user_s_module_moves_and_its_weights_and_records_are_still_found(tmp_path):
    before, jobs = trained(write(tmp_path / "old", TRAINED), "net")
    after, again = planned(write(tmp_path / "new", PACKAGED), "a.package.net")
    assert (after.weights, after.weights_sha256) == (before.weights, before.weights_sha256)
    assert [job.key for job in again] == [job.key for job in jobs]


def test_a_network_in_another_file_changes_and_the_old_weights_are_not_taken(tmp_path):
    before, jobs = trained(write(tmp_path, TRAINED), "net")
    assert planned(tmp_path)[0].weights_sha256 == before.weights_sha256  # nothing has changed
    write(tmp_path, {"parts_of_it/network.py": NETWORK.replace("classes)\n", "classes, bias=True)\n")})
    after, again = planned(tmp_path)
    assert not after.trained and after.weights != before.weights
    assert not {job.key for job in jobs} & {job.key for job in again}


def test_a_part_of_user_code_is_trained_again_when_its_own_code_changes(tmp_path):
    files = TRAINED | {
        "whole.py": """
from manifold_bench.defenses.base import Defense
from net import Net as Inner
class Net(Defense):
    parts = ("inner",)
    def __init__(self, spec):
        super().__init__(spec)
        self.inner = Inner(spec)
    def forward(self, x):
        return self.inner(x)
"""
    }
    before = planned(write(tmp_path, files), "whole")[0].parts["inner"]
    with importable(tmp_path):
        train(Training(plan("whole:Net")[0].part("inner"), DatasetRef("digits", None), before.weights))
    assert planned(tmp_path, "whole")[0].trained
    write(tmp_path, {"whole.py": files["whole.py"] + "# the part itself is as it was\n"})
    assert planned(tmp_path, "whole")[0].parts["inner"].trained
    write(tmp_path, {"parts_of_it/network.py": NETWORK + "# another\n"})
    assert not planned(tmp_path, "whole")[0].parts["inner"].trained


SYSTEMS = """
from dataclasses import dataclass
import helpers
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.bench.measurements.reconstruction import Reconstruction
from manifold_bench.attacks.gradient import PGD
from tiny import NearestMean

class Mean(NearestMean):
    pass

@dataclass(frozen=True, kw_only=True)
class Own(PGD):
    pass

@dataclass(frozen=True)
class Data(Digits):
    pass

@dataclass(frozen=True, kw_only=True)
class Measured(Reconstruction):
    pass
"""
ENTRIES = {
    "defense": {"name": "systems:Mean", "label": "mine"},
    "attack": PGD | {"name": "systems:Own", "label": "mine"},
    "dataset": "systems:Data",
    "measurement": {"name": "systems:Measured", "label": "mine"},
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_helper_changes_and_nothing_stored_is_used_again(tmp_path, kind):
    def keyed(helper: str) -> list[str]:
        with importable(write(tmp_path, {"systems.py": SYSTEMS, "helpers.py": helper})):
            return keys(**{kind: ENTRIES[kind]})

    before, after = keyed("value = 1\n"), keyed("value = 2\n")
    assert before == keyed("value = 1\n")
    same = [a == b for a, b in zip(before, after, strict=True)]  # clean pass, attack, measurement
    assert (
        same
        == {
            "defense": [False, False, False],
            "attack": [True, False, True],
            "dataset": [False, False, False],
            "measurement": [True, True, False],
        }[kind]
    )


@pytest.mark.parametrize("folder", ["./", "nets/../", "absolute"])
def test_a_file_that_is_named_by_another_path_has_the_same_keys(tmp_path, monkeypatch, folder):
    write(tmp_path, {"systems.py": SYSTEMS, "helpers.py": "value = 1\n", "nets/.keep": ""})
    monkeypatch.chdir(tmp_path)

    def planned_as(place: str) -> tuple[list[str], set[str]]:
        file = f"{place}systems.py"
        attack = {"name": f"{file}:Own", "eps": [0.1]}
        _, jobs, measured = plan(f"{file}:Mean", attack, measurement=f"{file}:Measured")
        return [job.key for job in (*jobs, *measured)], {job.defense.label for job in jobs}

    with importable(tmp_path):
        keyed, labels = planned_as("")
        assert labels == {"systems.py:Mean"} and len(keyed) == 3
        assert planned_as(f"{tmp_path}/" if folder == "absolute" else folder) == (keyed, labels)


def test_a_module_of_this_project_moves_and_the_zoo_and_all_records_are_still_found(monkeypatch):
    ref, jobs, measured = plan()
    spec = importlib.util.spec_from_file_location("defenses.elsewhere", sys.modules[Undefended.__module__].__file__)
    assert spec and spec.loader
    moved = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "defenses.elsewhere", moved)
    spec.loader.exec_module(moved)
    point = EntryPoint("undefended", "defenses.elsewhere:Undefended", "manifold_bench.defenses")
    monkeypatch.setitem(registered("defenses"), "undefended", point)
    after = plan()
    assert after[0].cls is moved.Undefended is not ref.cls
    assert (after[0].weights, after[0].weights_sha256) == (ref.weights, ref.weights_sha256) and ref.trained
    assert [job.key for job in (*after[1], *after[2])] == [job.key for job in (*jobs, *measured)]
    loaded = from_zoo("undefended", "digits")
    assert isinstance(loaded, moved.Undefended) and weights_hash(loaded) == ref.weights_sha256


def test_an_option_with_a_default_is_added_and_nothing_is_computed_again(monkeypatch):
    ref, jobs, measured = plan()
    added = dataclasses.field(default=0.5)
    extended = dataclasses.make_dataclass(
        "UndefendedSpec", [("smoothing", float, added)], bases=(Undefended.Spec,), frozen=True, kw_only=True
    )
    monkeypatch.setattr(Undefended, "Spec", extended)
    after = plan()
    assert after[0].spec.smoothing == 0.5
    assert after[0].weights == ref.weights and after[0].weights_sha256 == ref.weights_sha256 is not None
    assert [job.key for job in (*after[1], *after[2])] == [job.key for job in (*jobs, *measured)]
    other = plan({"name": "undefended", "label": "undefended", "smoothing": 0.25})
    assert not other[0].trained and other[1][1].key != jobs[1].key


DEFAULTS = Path(__file__).parent / "defaults.json"


def test_a_default_changes_only_together_with_the_version():
    """Keys leave defaults out: with another default under the same version, stored results would be taken for new ones.

    defaults.json holds those of every registered system. Add what is new; where a default changed, raise the system's
    `version` before its entry is brought up to date.
    """
    kinds: tuple[Kind, ...] = ("defenses", "parts", "attacks", "measurements")
    known = json.loads(DEFAULTS.read_text(encoding="utf-8"))
    found = {kind: {name: described(find(kind, name)) for name in registered(kind)} for kind in kinds}
    for kind in kinds:
        for name, now in found[kind].items():
            before = known[kind].get(name, {"version": None})
            if before["version"] == now["version"]:
                kept = {option: now["defaults"].get(option) for option in before["defaults"]}
                assert before["defaults"] == kept, f"{name}: another default, the same version"
    assert known == found


def described(cls: Any) -> dict[str, Any]:
    """Version and defaults of a system, and of every dataclass that one of its options may hold."""
    waiting, defaults = [getattr(cls, "Spec", cls)], {}
    for spec in waiting:  # which grows meanwhile
        hints = get_type_hints(spec)
        for field in dataclasses.fields(spec):
            value = field.default
            if field.default_factory is not dataclasses.MISSING:
                value = field.default_factory()
            if value is not dataclasses.MISSING:
                place = field.name if spec is waiting[0] else f"{spec.__name__}.{field.name}"
                defaults[place] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
            waiting += [one for one in dataclasses_in(hints[field.name]) if one not in waiting]
    return json.loads(json.dumps({"version": cls.version, "defaults": defaults}))


def dataclasses_in(hint: Any) -> list[type]:
    """All dataclasses that a type hint allows."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [found for part in get_args(hint) for found in dataclasses_in(part)]


BROKEN = """
from manifold_bench.defenses.base import Defense
from tiny import NearestMean
from answers import answer
class Net(NearestMean):
    def forward(self, x):
        return answer(super().forward(x))
"""


def test_a_gate_does_not_pass_a_defense_whose_helper_was_broken(tmp_path):
    """Its records are not taken from the baseline: it runs again, is compared, and fails."""
    home = tmp_path / "home"
    write(home, {"mine.py": BROKEN, "answers.py": "def answer(logits):\n    return logits\n"})
    matrix = home / "matrix.toml"
    matrix.write_text(
        'datasets = [{ name = "digits", n = 60 }]\ndefenses = ["mine:Net"]\n'
        '[[attacks]]\nname = "noise"\neps = [0.1]\ndraws = 1\n'
    )
    assert bench_run(matrix, tmp_path / "old", path=str(home)).returncode == 0
    assert bench_run(matrix, tmp_path / "same", path=str(home)).returncode == 0
    write(home, {"answers.py": "def answer(logits):\n    return logits.roll(1, 1)\n"})
    assert bench_run(matrix, tmp_path / "old2", path=str(home)).returncode == 0
    gates = [
        command("compare", tmp_path / "old", tmp_path / new, cache=tmp_path).returncode for new in ("same", "old2")
    ]
    assert gates == [0, 1]
    # in the folder that holds the old records, too
    assert bench_run(matrix, tmp_path / "same", path=str(home)).returncode == 0
    assert command("compare", tmp_path / "old", tmp_path / "same", cache=tmp_path).returncode == 1


def test_every_option_that_is_set_is_in_the_parameters():
    choice = find("attacks", "pgd")(steps=7, restarts=2)
    assert parameters(choice) == {"steps": 7, "restarts": 2}
