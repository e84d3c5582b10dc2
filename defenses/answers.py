"""Tries a model on a few images; a model that returns no logits is refused with one line that says what to write."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from manifold_bench.defenses.errors import one_line

NO_GRADIENT = "does not require grad and does not have a grad_fn"
"""What torch says where a model differentiates without having gradients enabled."""

SIZES = (4, 8, 10, 16, 32, 50, 64, 100, 128)
"""Batch sizes that are tried for models that take a fixed batch size."""

REJECTS = "where an excess > 0 means rejected, with rejects=True"
"""How a model says that it rejects images, in messages."""

ADVICE: tuple[tuple[str, Callable[[Tensor], object]], ...] = (
    ("it computes in float64; give model.float()", Tensor.double),
    ("it computes in float16; give model.float()", Tensor.half),
    ("it computes in bfloat16; give model.float()", Tensor.bfloat16),
    (
        "it takes flat images; give nn.Sequential(nn.Flatten(), model), of a function lambda x: model(x.flatten(1))",
        lambda x: x.flatten(1),
    ),
    ("it takes images [N,H,W,C]; give lambda x: model(x.permute(0, 2, 3, 1))", lambda x: x.permute(0, 2, 3, 1)),
    ("it takes images [N,H,W]; give lambda x: model(x[:, 0])", lambda x: x[:, 0]),
    ("it takes one image alone; give lambda x: torch.cat([model(image[None]) for image in x])", lambda x: x[:1]),
    ("it takes one image [C,H,W]; give lambda x: torch.stack([model(image) for image in x])", lambda x: x[0]),
    ("it takes arrays; give lambda x: torch.as_tensor(model(x.cpu().numpy()))", Tensor.numpy),
    *(
        (f"it takes {size} images alone; it has to take any number", lambda x, n=size: x[:1].repeat(n, 1, 1, 1))
        for size in SIZES
    ),
)
"""What to write for models that take something other than images [N,C,H,W], and a function that makes that."""


def answers(model: nn.Module, images: Tensor, name: str) -> Tensor:
    """Return the model's logits for images [N,C,H,W] in evaluation mode, [N,M] float; the model is left as it was.

    name: name of the model in messages. Raises ValueError for a model that fails or returns anything else.
    """
    placed = next(iter([*model.parameters(), *model.buffers()]), images).device
    if placed.type == "meta":
        raise ValueError(f"{name} has its weights on the device 'meta', which holds no numbers; load them first")
    images = images.to(placed)
    with evaluating(model), torch.no_grad():
        try:
            found = model(images.clone())
        except Exception as error:  # a user's code may raise anything
            if NO_GRADIENT in str(error):
                advice = "; answers are computed under torch.no_grad: put steps that need gradients into a block "
                advice += "`with torch.enable_grad():`"
            else:
                advice = next((f"; {words}" for words, changed in ADVICE if _takes(model, changed(images.clone()))), "")
                if not advice and isinstance(error, TypeError | AttributeError):
                    advice = "; a model gets a tensor, no array or picture"
            shape = ", ".join(map(str, images.shape[1:]))
            raise ValueError(f"{name} fails on images of shape [N, {shape}]: {one_line(error)}{advice}") from error
    if fault := _fault(found, len(images)):
        raise ValueError(f"{name} returns {fault}")
    return found


def _takes(model: nn.Module, given: object) -> bool:
    """Return whether a model accepts this input."""
    try:
        model(given)
    except Exception:  # a user's code may raise anything
        return False
    return True


def _fault(found: object, n: int) -> str | None:
    """Return what is wrong with a model's outputs for n images, and what to write; None if nothing is wrong."""
    if isinstance(found, (dict, tuple, list)):
        return _fault_of_parts(found, n)
    if not isinstance(found, Tensor):
        return f"{type(found).__name__}, not a tensor of logits [N,K]; compute in torch, so that there are gradients"
    if found.is_nested or found.layout != torch.strided:
        return f"a tensor of layout {found.layout}, not an ordinary one; give lambda x: model(x).to_dense()"
    if found.is_meta:
        return "a tensor on the device 'meta', which holds no numbers; compute on the device of the images"
    shape = tuple(found.shape)
    if shape in ((n,), (n, 1)) and found.is_floating_point():
        return (
            f"shape {shape} for {n} images, not one output for each class; "
            "give lambda x: torch.stack([-model(x).flatten(), model(x).flatten()], 1) for two classes"
        )
    if not found.is_floating_point():
        fault = f"{found.dtype} of shape {shape} for {n} images, not logits; return the outputs, not the classes"
        return f"{fault}, and for a model that rejects mb.append_reject_score(logits, excess), {REJECTS}"
    if len(shape) > 2 and shape[0] == n and math.prod(shape[1:]) == shape[1]:
        return f"shape {shape} for {n} images; give lambda x: model(x).flatten(1)"
    if len(shape) != 2 or shape[0] != n:
        return f"shape {shape} for {n} images, not ({n}, number of classes)"
    if bool(found.isnan().any()):
        return "NaN for images in [0,1], which is no answer; look at its weights and at the pixels that it expects"
    return None


def _fault_of_parts(found: dict[Any, Any] | Sequence[Any], n: int) -> str:
    """Return what to write for a model that returns several parts, which may be anything, for n images."""
    parts = found if isinstance(found, dict) else dict(enumerate(found))
    logits = next((key for key, part in parts.items() if not _fault(part, n)), next(iter(parts), 0))
    if isinstance(found, dict):
        logits = next((key for key in found if "logit" in str(key)), logits)
        kind = f"a dict of {', '.join(map(str, found))}"
    else:
        kind = f"a {type(found).__name__} of {len(found)}"
    alone = f"give lambda x: model(x)[{logits!r}]"
    score = next((key for key, part in parts.items() if key != logits and _of_each_image(part, n)), None)
    if score is None:
        return f"{kind}; {alone}"
    is_bool = parts[score].dtype == torch.bool
    given = f"found[{score!r}]"
    excess = f"{given} - threshold where large means rejected"
    if is_bool:
        excess = "score - threshold of what decides it, since attacks need its gradient, or else "
        excess += f"0.5 - {given}.float() where True means accepted"
    return (
        f"{kind}, of which part {score!r} is one {'bool' if is_bool else 'number'} for each image; if that says what "
        f"is rejected, return mb.append_reject_score(found[{logits!r}], excess) for found = model(x), {REJECTS}, as "
        f"excess = {excess}; to leave the detector out, {alone}"
    )


def _of_each_image(part: object, n: int) -> bool:
    """Return whether a part of a model's outputs for n images is one number, or one bool, for each image."""
    return isinstance(part, Tensor) and part.dtype != torch.int64 and tuple(part.shape) in ((n,), (n, 1))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and restore the mode of each of its parts at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
