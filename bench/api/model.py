"""Models as a program hands them in: objects, classes and functions that make them, pairs with weights, and names."""

from __future__ import annotations

import inspect
from pathlib import Path

from manifold_bench.attacks.base import Attack
from manifold_bench.bench.api.named import by_name
from manifold_bench.bench.api.options import shown
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.named_models import with_weights
from manifold_bench.bench.planning.registry import called, needs_no_arguments
from manifold_bench.defenses.base import Defense


def resolved(model: object, place: str = "model") -> object:
    """Return a model or its name; a class or a function without arguments is called.

    A pair (model, file of weights) is the model with these, or the name of both. place: beginning of messages. Raises
    InputError for what is no model.
    """
    if not isinstance(model, tuple):
        return _made(model, place)
    if len(model) != 2 or not isinstance(model[1], (str, Path)):
        raise InputError(f'{place}: {shown(model)} is no model; a pair is (network, file), as (Net, "net.safetensors")')
    network, file = model
    return f"{network}@{file}" if isinstance(network, str) else with_weights(_made(network, place), Path(file))


def _made(model: object, place: str) -> object:
    """Return a model; raises InputError for attacks, for defenses that are trained, and for functions of more."""
    cls = model if isinstance(model, type) else type(model)
    if issubclass(cls, Attack):
        raise InputError(f"{place}: {cls.__name__} is an attack; give a model here, and the attack's name in `attacks`")
    if isinstance(model, type) and issubclass(model, Defense) and not needs_no_arguments(model):
        raise InputError(f"{place}: {by_name('defenses', model)}, because it is trained for a data set")
    if inspect.isroutine(model) and (number := _needed(model)) > 1:
        raise InputError(
            f"{place}: {model.__name__} takes {number} arguments; give a function of the images [N,C,H,W] alone, or "
            "one without arguments that returns a model"
        )
    return called(model, place)


def _needed(function: object) -> int:
    """Return the number of arguments without which a function cannot be called; 0 where Python does not know it."""
    assert callable(function)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions that are not written in Python have none
        return 0
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(one.default is one.empty and one.kind not in variable for one in parameters)
