"""Models that are given by a name: networks with a file of weights, and the models of timm and RobustBench."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import urlopen

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from manifold_bench.attacks.missing import not_installed
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.folders import cache_folder
from manifold_bench.bench.planning.usercode import contained
from manifold_bench.bench.terminal import Terminal
from manifold_bench.bench.text import nearest
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.files import checked_file
from manifold_bench.defenses.models import Normalize, copied

T = TypeVar("T")

SECONDS = 5.0
"""Seconds within which a server has to answer before anything is downloaded from it."""

WRAPPED = ("state_dict", "model_state_dict", "model")
"""Keys of the weights in checkpoints that hold other things too."""

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that `DataParallel` and `torch.compile` add to names of weights."""


def with_weights(model: object, path: Path) -> nn.Module:
    """Return a copy of a module with the weights of a file.

    path: a safetensors file, or a file of torch.save with a state dict, alone or in a checkpoint. Only tensors are
    unpickled. Raises InputError.
    """
    place = f"weights {str(path)!r}"
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{place}: {type(model).__name__} takes no weights; give a module, (Net, FILE) or file.py:Net@FILE"
        )
    try:
        safe = checked_file(path).suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, "cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{place}: no such file") from error
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror or one_line(error)})") from error
    except Exception as error:  # for a file of anything else torch and pickle raise exceptions of any kind
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
        loaded = copied(model)  # the module itself may be used without these weights, or with others
        loaded.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{place}: does not fit {type(model).__name__} ({one_line(error)})") from error
    return loaded


@cache
def timm_model(name: str) -> nn.Module:
    """Return a pretrained model of timm, with its normalization: images in [0,1] → logits. Raises InputError."""
    timm = _imported(f"defense 'timm:{name}'", "timm")
    if not timm.is_model(name):
        raise InputError(f"defense 'timm:{name}': timm has no such model{nearest(name, timm.list_models())}")
    server = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    online = not os.environ.get("HF_HUB_OFFLINE") and _answers(f"timm:{name}", server)
    with _offline(not online):  # else it tries again for a minute, also where the weights are cached
        model = _downloaded(f"timm:{name}", server, lambda: timm.create_model(name, pretrained=True))
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
    folder, server = cache_folder("robustbench"), "https://drive.google.com"
    stored = any((folder / dataset / threat).glob(f"{model}*"))
    if not stored and not _answers(f"robustbench:{name}", server):
        raise InputError(f"{place}: {_needs(server)}")
    return _downloaded(
        f"robustbench:{name}",
        server,
        lambda: utils.load_model(model_name=model, dataset=dataset, threat_model=threat, model_dir=folder),
    )


def _imported(place: str, module: str) -> ModuleType:
    """Import an optional library; raises InputError if it, or a package that it needs, is missing or broken."""
    with contained(f"{place}: {module.partition('.')[0]} cannot be imported"):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise InputError(not_installed(place, (error.name or module).partition(".")[0])) from error


def _needs(server: str) -> str:
    return f"its weights are downloaded once from {server.partition('://')[2]}, which needs the network"


def _answers(name: str, server: str) -> bool:
    """Return whether a server answers within `SECONDS`, whatever it answers; a terminal shows what happens.

    A thread waits for it, because nothing limits the time in which the system looks for the server's address.
    """
    console, answered = Terminal(stderr=True), threading.Event()

    def ask() -> None:
        try:
            urlopen(server, timeout=SECONDS).close()
        except HTTPError:
            pass
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    if console.is_terminal and multiprocessing.parent_process() is None:  # jobs load the model again
        console.print(f"{name}: its weights are looked for in the cache and at {server} …", highlight=False)
    thread.start()
    thread.join(SECONDS)
    return answered.is_set()


@contextmanager
def _offline(off: bool) -> Iterator[None]:
    """Let timm's models come from the cache alone during the code inside, if `off`."""
    constants = sys.modules.get("huggingface_hub.constants")  # it has read the environment already
    before = getattr(constants, "HF_HUB_OFFLINE", False)
    if constants is not None:
        vars(constants)["HF_HUB_OFFLINE"] = before or off
    try:
        yield
    finally:
        if constants is not None:
            vars(constants)["HF_HUB_OFFLINE"] = before


def _downloaded(name: str, server: str, load: Callable[[], T]) -> T:
    """Return what `load` returns; any exception becomes an InputError that mentions the network.

    Meanwhile warnings in logs are not shown: without a network, a library reports each of its attempts there.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return load()
    except Exception as error:  # libraries that download raise exceptions of any kind
        raise InputError(f"defense {name!r}: cannot be loaded ({one_line(error)}); {_needs(server)}") from error
    finally:
        logging.disable(before)
