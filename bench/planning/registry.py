"""Finds classes by name: entry points of installed packages, `package.module:Name`, `file.py:Name`, and models."""

from __future__ import annotations

import copyreg
import hashlib
import importlib
import inspect
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeGuard, overload

import torch

from manifold_bench.attacks.base import Attack
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.datasets.given import dataset_of_folder
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.measurements.base import Measurement
from manifold_bench.bench.planning.helpers import own_helpers
from manifold_bench.bench.planning.named_models import robustbench_model, timm_model, with_weights
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.bench.text import MODEL_FILES, nearest
from manifold_bench.defenses.base import Defense, Trainable
from manifold_bench.defenses.errors import message_of, one_line
from manifold_bench.defenses.files import checked_file
from manifold_bench.defenses.identity import JsonObject, Kind, registered
from manifold_bench.defenses.models import class_of, name_of

BASES: Mapping[Kind, type[object]] = {
    "datasets": Dataset,
    "defenses": Defense,
    "parts": Trainable,
    "attacks": Attack,
    "measurements": Measurement,
    "inspections": Measurement,
}
"""The base class of each kind."""

SINGULAR: dict[Kind, str] = {
    "datasets": "data set",
    "defenses": "defense",
    "parts": "part of defenses",
    "attacks": "attack",
    "measurements": "measurement",
    "inspections": "inspection of the diagnosis",
}


_handed_in: dict[tuple[Kind, str], type[object]] = {}
"""Classes that a Python program added (`handing_in`), because no module holds them."""

_settings: dict[str, JsonObject] = {}
"""Label of a defense that a Python program added → its keys as in a matrix file, such as rejects and draws."""


@contextmanager
def handing_in(
    kind: Kind, classes: Mapping[str, type[object]], settings: Mapping[str, JsonObject] = {}
) -> Iterator[None]:
    """Let `find` return these classes by name, and `settings_of` these settings, in this process and context.

    Others come back after it.
    """
    before, settings_before = dict(_handed_in), dict(_settings)
    _handed_in.update({(kind, name): cls for name, cls in classes.items()})
    _settings.update(settings)
    try:
        yield
    finally:
        _handed_in.clear()
        _handed_in.update(before)
        _settings.clear()
        _settings.update(settings_before)


def settings_of(label: str) -> JsonObject:
    """Return the settings, such as `rejects`, that a Python program gave a model of this label; empty for any other."""
    return dict(_settings.get(label, {}))


@overload
def find(kind: Literal["datasets"], name: str) -> type[Dataset]: ...
@overload
def find(kind: Literal["defenses"], name: str) -> type[Defense]: ...
@overload
def find(kind: Literal["attacks"], name: str) -> type[Attack]: ...
@overload
def find(kind: Literal["measurements", "inspections"], name: str) -> type[Measurement]: ...
@overload
def find(kind: Kind, name: str) -> type[object]: ...
def find(kind: Kind, name: str) -> type[object]:
    """Return the class with that name; raises InputError, with the nearest known name.

    `library:Class` names an attack or a defense of a registered adapter (art:DeepFool, art:JpegCompression), and
    otherwise a class in a module. A defense may also be a model: `package.module:net` or `file.py:net` for a module, a
    function of tensors, or a function without arguments that returns one of these; the same followed by
    `@weights.safetensors` or `@weights.pt`, for a module with these weights; `timm:name`; `robustbench:dataset/threat
    model/name`; or `file.pt` for a TorchScript module. A data set may also be the path of a folder of images by class.
    """
    if (kind, name) in _handed_in:
        return _handed_in[kind, name]
    points = registered(kind)
    prefix, colon, attribute = name.partition(":")
    if kind == "defenses":
        network, _, weights = name.rpartition("@")
        if ":" in network:
            return _defense_of(name, _object(kind, network), Path(weights))
        if Path(name).suffix in MODEL_FILES:
            return _torchscript(name)
        if prefix in ("timm", "robustbench") and attribute:
            return _of_library(name, prefix, attribute)
    if prefix.endswith(".py") and colon:
        return _checked(kind, name, _object(kind, name))
    if name in points:
        return _load(kind, points[name])
    if kind == "datasets" and name and Path(name).is_dir():
        return _folder_of_images(name)
    if kind in ("attacks", "defenses") and colon and prefix in points:
        return _of_adapter(kind, name, _load(kind, points[prefix]))
    if not colon:
        if fault := _fault_of_path(kind, name):
            raise InputError(f"{SINGULAR[kind]} {name!r}: {fault}")
        known = list(points)
        listed = f"`manifold-bench list` names all {len(known)}; file.py:Name and package.module:Name are allowed too"
        if kind == "datasets":
            names = ", ".join(known)
            listed = f"no folder has that name either; `manifold-bench list` names {names}; file.py:Name is allowed too"
        raise InputError(f"unknown {SINGULAR[kind]} {name!r}{nearest(name, known, listed)}")
    return _checked(kind, name, _object(kind, name))


def _fault_of_path(kind: Kind, name: str) -> str | None:
    """Return what is wrong with a path that was given as a name, and what to write; None for other names."""
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        content = _import_file(kind, name, path)
        found = {word: value for word, value in vars(content).items() if _is_candidate(word, value, path.stem)}
        inside = sorted(found, key=lambda word: not _is_of_kind(kind, found[word]))  # stable: else in the file's order
        there = f"; it has {', '.join(inside)}" if inside else ""
        return f"name what is in it, as {name}:{inside[0] if inside else 'Name'}{there}"
    if path.suffix != ".py" and not {"/", os.sep} & set(name):
        return None
    if not path.exists():
        return f"no such {'folder' if kind == 'datasets' else 'file'}; give a path that exists, or a registered name"
    return "give a registered name, or what is in a Python file, as file.py:Name"


def _folder_of_images(name: str) -> type[Dataset]:
    """Return a data set class for a folder of images by class; raises InputError."""
    with contained(f"data set {name!r}: cannot be read"):
        return dataset_of_folder(Path(name).resolve())


def _is_candidate(word: str, value: object, module: str) -> bool:
    """Return whether something in a module may be what its user means: a public object made there, or a network."""
    maker = value if inspect.isclass(value) or inspect.isroutine(value) else type(value)
    return not word.startswith("_") and (maker.__module__ == module or isinstance(value, torch.nn.Module))


def _is_of_kind(kind: Kind, value: object) -> bool:
    """Return whether something is a class or an object of that kind, or for defenses a network."""
    bases = (BASES[kind], torch.nn.Module) if kind == "defenses" else (BASES[kind],)
    return isinstance(value, bases) or (isinstance(value, type) and issubclass(value, bases))


def _of_adapter(kind: Kind, name: str, adapter: type[object]) -> type[object]:
    """Return the class for a name whose first part is a registered adapter's; raises InputError.

    The adapter of attacks itself chooses the library's class, by its parameters. One of defenses makes a class.
    """
    prefix, _, attribute = name.partition(":")
    if not (issubclass(adapter, (Attack, Defense)) and adapter.open_parameters):
        article = "an" if kind == "attacks" else "a"
        raise InputError(
            f"unknown {SINGULAR[kind]} {name!r}; {prefix!r} is {article} {SINGULAR[kind]} itself; leave out the colon"
        )
    if issubclass(adapter, Attack):
        return adapter
    try:
        return adapter.named(attribute)
    except ValueError as error:
        raise InputError(f"defense {name!r}: {error}") from error


def _object(kind: Kind, name: str) -> object:
    """Return the object that `package.module:name` or `file.py:name` names; raises InputError."""
    prefix, _, attribute = name.partition(":")
    if prefix.endswith(".py"):
        return _attribute(kind, name, _import_file(kind, name, Path(prefix)), attribute)
    if not all(part.isidentifier() for part in [*prefix.split("."), *attribute.split(".")]):
        raise InputError(f"unknown {SINGULAR[kind]} {name!r}; give a registered name or package.module:Name")
    return _attribute(kind, name, _imported(kind, name, prefix), attribute)


def _import_file(kind: Kind, name: str, path: Path) -> ModuleType:
    """Import a Python file, and return its module; raises InputError."""
    place = f"{SINGULAR[kind]} {name!r}"
    if not path.is_file():
        raise InputError(f"{place}: no such file: {path}")
    if not path.stem.isidentifier():
        raise InputError(f"{place}: {path.name!r} cannot be imported; use letters, digits and _ in the file's name")
    with own_helpers(path, place):
        return _imported(kind, name, path.stem)


def _attribute(kind: Kind, name: str, module: ModuleType, attribute: str) -> object:
    """Return one of a module's objects by name; raises InputError if there is none."""
    found = getattr(module, attribute, None)
    if found is None:
        public = [word for word in vars(module) if not word.startswith("_")]
        raise InputError(
            f"{SINGULAR[kind]} {name!r}: {module.__name__!r} has no {attribute!r}{nearest(attribute, public)}"
        )
    return found


def _imported(kind: Kind, name: str, module: str) -> ModuleType:
    """Import a module; raises InputError with the line of its file where that fails."""
    fault = f"{SINGULAR[kind]} {name!r}: cannot import {module!r}"
    with contained(fault):
        torch.manual_seed(0)  # a network with random weights has to be the same in every process
        try:
            return importlib.import_module(module)
        except Exception as error:  # a user's code may raise anything
            raise InputError(f"{fault} ({one_line(error)}{_line_of(error, module)})") from error


def _line_of(error: Exception, module: str) -> str:
    """Return the line of a module's file where its import fails, as ", mine.py line 3"; "" where it is not known.

    A SyntaxError names its line itself.
    """
    file = Path(*module.split(".")).with_suffix(".py")
    lines = [(one.filename, one.lineno) for one in traceback.extract_tb(error.__traceback__)]
    own = [line for name, line in lines if Path(name).parts[-len(file.parts) :] == file.parts]
    return f", {file.name} line {own[-1]}" if own else ""


def _torchscript(name: str) -> type[Defense]:
    """Return a defense class for the model in a TorchScript file; raises InputError."""

    path = Path(name)
    try:
        content = checked_file(path).read_bytes()
        module = torch.jit.load(path, map_location="cpu")
    except OSError as error:
        raise InputError(f"defense {name!r}: the file cannot be read ({error.strerror})") from error
    except RuntimeError as error:
        raise InputError(
            f"defense {name!r}: not a TorchScript file (torch.jit.save). Pickled models are not loaded, because that "
            f"would run their code; name the class of the model with these weights, as file.py:Net@{name}"
        ) from error
    cls = _by_reference(class_of(module, name, class_of.__module__))
    cls.version = int(hashlib.sha256(content).hexdigest()[:15], 16)
    return cls


def _of_library(name: str, library: str, model: str) -> type[Defense]:
    """Return a defense class for a pretrained model of timm or RobustBench; raises InputError."""
    made = timm_model(model) if library == "timm" else robustbench_model(model)
    return _by_reference(class_of(made, name, library))


def _defense_of(name: str, found: object, weights: Path | None = None) -> type[Defense]:
    """Return a defense class for a model that was found under that name in a user's module; raises InputError.

    weights: file of weights that are loaded into the model; None: it keeps its own.
    """

    prefix = name.partition(":")[0]
    module = Path(prefix).stem if prefix.endswith(".py") else prefix
    made = called(found, f"defense {name!r}")
    with contained(f"defense {name!r}: {name_of(found)} is no model"):
        if weights is not None:
            made = with_weights(made, weights)
        try:
            return _by_reference(class_of(made, name, module))
        except TypeError as error:
            raise InputError(f"defense {name!r}: {message_of(error)}") from error


def called(found: object, place: str) -> object:
    """Return what a class or a function without arguments returns, and anything else as it is.

    place: beginning of messages. Raises InputError for a class that takes arguments, and where the call fails.
    """
    if needs_no_arguments(found):
        with contained(f"{place}: {name_of(found)}() fails"):
            torch.manual_seed(0)  # random initial weights have to be the same in every process
            found = found()
    if isinstance(found, type):
        trained = issubclass(found, Defense)
        what = "takes arguments; give an instance, or a function without arguments that returns one"
        if trained:
            what = f"is trained for a data set; give its name, as file.py:{found.__qualname__}"
        raise InputError(f"{place}: {found.__qualname__} {what}")
    return found


def needs_no_arguments(found: object) -> TypeGuard[Callable[[], object]]:
    """Return whether an object is a class or a function that is meant to be called without arguments.

    A function of any number of arguments may be one of images.
    """
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return False
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError:  # some functions that are not written in Python have none
        return False
    optional = [inspect.Parameter.VAR_KEYWORD, *([inspect.Parameter.VAR_POSITIONAL] if inspect.isclass(found) else [])]
    return all(one.default is not one.empty or one.kind in optional for one in parameters)


def _by_reference(cls: type[Defense]) -> type[Defense]:
    """Let a class that was made at run time be pickled as its name, by which `find` makes it again; return it."""
    copyreg.pickle(type(cls), lambda made: (_by_name, (vars(made)["reference"],)))
    return cls


def _by_name(reference: str) -> type[Defense]:
    return find("defenses", reference)


def _load(kind: Kind, point: EntryPoint) -> type[object]:
    with contained(f"{SINGULAR[kind]} {point.name!r}: cannot load {point.value!r}"):
        return _checked(kind, point.name, point.load())


def _checked(kind: Kind, name: str, found: object) -> type[object]:
    """Return a loaded object as a class of that kind; a model becomes a defense class. Raises InputError."""
    base = BASES[kind]
    if kind == "defenses" and not (isinstance(found, type) and issubclass(found, base)):
        return _defense_of(name, found)
    if not (isinstance(found, type) and issubclass(found, base)):
        what = found.__name__ if isinstance(found, type) or inspect.isroutine(found) else repr(found)
        needed = f"a class that derives from {base.__module__}.{base.__name__}"
        raise InputError(f"{SINGULAR[kind]} {name!r}: {what} is not {needed}")
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(vars(found)["__abstractmethods__"]))
        raise InputError(f"{SINGULAR[kind]} {name!r}: {found.__name__} is abstract; it lacks {lacking}")
    return found
