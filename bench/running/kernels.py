"""The numerical kernels of a run, and a check that they give an input the same result in batches of every size.

A layer multiplies matrices, and a numerical library picks the code for that by the processor and by the number of
rows. Some codes add up in another order than others, so that an input's outputs can differ in their last bits between
two batches, and an attack that goes on from such bits can end elsewhere. `choose_kernels` asks for one order;
`LayerCheck` verifies that the layers of a defense keep it on this machine.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from manifold_bench.attacks.batching import BLOCK, batch_rows
from manifold_bench.bench.planning.folders import cache_folder
from manifold_bench.bench.running.environment import VARIABLES
from manifold_bench.defenses.files import atomic_write, checked_file
from manifold_bench.defenses.identity import JsonObject

CHECKED = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers that multiply matrices; all others compute each value by itself or within one input."""


def kernels(device: str = "cpu") -> JsonObject:
    """Return everything that decides how results are rounded: processor, instruction set, libraries, settings."""
    libraries = torch.__config__.show()
    found = {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "blas": _first(r"BLAS_INFO=(\w+)", libraries),
        "mkl": _first(r"Math Kernel Library Version (\S+)", libraries),
        "onednn": _first(r"MKL-DNN (\S+)", libraries),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


@functools.cache
def processor() -> str:
    """Return the name of the processor."""
    try:
        models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:  # not Linux
        models = []
    return models[0].strip() if models else platform.processor() or platform.machine()


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


class LayerCheck:
    """A context that records which matrix layers a defense uses, and then checks which of them are uneven.

    A layer is uneven if outputs or input gradients of the first rows of a batch have other bits when these rows are a
    smaller batch. Use: `with LayerCheck(defense, images) as check: defense(images)`, then `check.uneven()`.

    images: [N,C,H,W] on the defense's device; their shape decides the size of batches.
    """

    def __init__(self, defense: nn.Module, images: Tensor) -> None:
        self._defense, self._device, self._most = defense, str(images.device), batch_rows(images)
        self._checks: dict[str, Callable[[], list[int]]] = {}

    def __enter__(self) -> Self:
        layers = [layer for layer in self._defense.modules() if isinstance(layer, CHECKED)]
        self._hooks = [layer.register_forward_hook(self._note) for layer in layers]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        x = arguments[0]
        channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        name = f"{layer} on {'×'.join(map(str, x.shape[1:]))}{' channels last' if channels_last else ''}"
        if name not in self._checks:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            like = torch.empty((0, *x.shape[1:]), dtype=x.dtype, device=x.device)
            self._checks[name] = functools.partial(uneven_sizes, layer, like, self._most, layout)

    def uneven(self) -> list[str]:
        """Return the uneven layers, each with the sizes of batches whose results differ from those of the largest.

        Results for the same kernels are cached, if the cache can be written to. A new layer computes about two of the
        largest batches, forward and backward.
        """
        key = hashlib.sha256(json.dumps(kernels(self._device), sort_keys=True).encode()).hexdigest()[:16]
        path = cache_folder("kernels") / f"{key}.json"
        known = _known(path)
        if new := {name: check() for name, check in self._checks.items() if name not in known}:
            known |= new
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, json.dumps(known, indent=1) + "\n")
        return [f"{name}: batches of {', '.join(map(str, known[name]))}" for name in self._checks if known[name]]


def uneven_sizes(layer: nn.Module, like: Tensor, most: int, layout: torch.memory_format) -> list[int]:
    """Return batch sizes for which a layer's outputs or input gradients have other bits than in a batch of `most`.

    like: an input of the layer, for shape, type and device. layout: its layout in memory. Attacks use batches of whole
    blocks, up to `batch_rows`. A layer that fails on other batch sizes counts as even.
    """
    sizes = [size for size in (BLOCK * blocks for blocks in (1, 2, 3, 5, 8, 16)) if size < most]
    x = torch.randn((most, *like.shape[1:]), generator=torch.Generator().manual_seed(0)).to(like)

    def computed(rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            rows = rows.clone().contiguous(memory_format=layout).requires_grad_(True)
            output = layer(rows)
            (gradient,) = torch.autograd.grad(output.square().sum(), rows)
        return output.detach(), gradient

    try:
        whole = computed(x)
        return [
            size
            for size in sizes
            if not all(torch.equal(part, full[:size]) for part, full in zip(computed(x[:size]), whole, strict=True))
        ]
    except RuntimeError:
        return []


def _known(path: Path) -> dict[str, list[int]]:
    """Return the cached results for these kernels; empty if there is no such file or it is damaged."""
    try:
        known = json.loads(checked_file(path).read_text(encoding="utf-8"))
        return {str(name): [int(size) for size in sizes] for name, sizes in known.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError, OverflowError):
        return {}
