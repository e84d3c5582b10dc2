"""Models that are given by a name: networks with a file of weights, and the models of timm and RobustBench."""

from __future__ import annotations

import importlib
import logging
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from manifold_bench.attacks.missing import not_installed
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.folders import cache_folder
from manifold_bench.bench.planning.registry import nearest
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.models import Normalize

WRAPPED = ("state_dict", "model_state_dict", "model")
"""Keys of the weights in checkpoints that hold other things too."""

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that `DataParallel` and `torch.compile` add to names of weights."""


def with_weights(model: object, path: Path) -> nn.Module:
    """Load the weights of a file into a module, and return it.

    path: a safetensors file, or a file of torch.save with a state dict, alone or in a checkpoint. Only tensors are
    unpickled. Raises InputError.
    """
    place = f"weights {str(path)!r}"
    if not isinstance(model, nn.Module):
        raise InputError(f"{place}: {type(model).__name__} takes no weights; name a torch.nn.Module before the @")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{place}: no such file") from error
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(
            f"{place}: is no file of weights (whole models are not unpickled, because that would run their code); "
            "save weights with torch.save(model.state_dict(), file) or safetensors.torch.save_file"
        ) from error
    state = next((state[key] for key in WRAPPED if isinstance(state, dict) and isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{place}: holds no state dict; save model.state_dict()")
    for wrapper in WRAPPERS:
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{place}: does not fit {type(model).__name__} ({one_line(error)})") from error
    return model


@cache
def timm_model(name: str) -> nn.Module:
    """Return a pretrained model of timm, with its normalization: images in [0,1] → logits. Raises InputError."""
    timm = _imported(f"defense 'timm:{name}'", "timm")
    if not timm.is_model(name):
        raise InputError(f"defense 'timm:{name}': timm has no such model{nearest(name, timm.list_models())}")
    model = _downloaded(f"timm:{name}", lambda: timm.create_model(name, pretrained=True))
    made_for = model.pretrained_cfg
    return nn.Sequential(Normalize(made_for["mean"], made_for["std"], made_for["input_size"][0]), model).eval()


@cache
def robustbench_model(name: str) -> nn.Module:
    """Return a model of RobustBench by `dataset/threat model/name`: images in [0,1] → logits. Raises InputError."""
    place = f"defense 'robustbench:{name}'"
    zoo, utils = (_imported(place, f"robustbench.{module}") for module in ("model_zoo", "utils"))
    known = {
        f"{dataset.value}/{threat.value}/{model}"
        for dataset, threats in zoo.model_dicts.items()
        for threat, models in threats.items()
        for model in models
    }
    if name not in known:
        example = nearest(name, sorted(known)) or "; name one as in robustbench:cifar10/Linf/Carmon2019Unlabeled"
        raise InputError(f"{place}: RobustBench has no such model{example}")
    dataset, threat, model = name.split("/")
    folder = cache_folder("robustbench")
    return _downloaded(
        f"robustbench:{name}",
        lambda: utils.load_model(model_name=model, dataset=dataset, threat_model=threat, model_dir=folder),
    )


def _imported(place: str, module: str) -> Any:
    """Import an optional library; raises InputError if it, or a package that it needs, is missing or broken."""
    with contained(f"{place}: {module.partition('.')[0]} cannot be imported"):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise InputError(not_installed(place, (error.name or module).partition(".")[0])) from error


def _downloaded(name: str, load: Callable[[], Any]) -> Any:
    """Return what `load` returns; any exception becomes an InputError that mentions the network.

    Meanwhile warnings in logs are not shown: without a network, a library reports each of its attempts there.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return load()
    except Exception as error:  # libraries that download raise exceptions of any kind
        raise InputError(
            f"defense {name!r}: cannot be loaded ({one_line(error)}); its weights are downloaded once, "
            "which needs the network"
        ) from error
    finally:
        logging.disable(before)
