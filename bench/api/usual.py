"""The attacks of `evaluate` where none are given: by gradients, or by queries where the model has no gradient."""

from __future__ import annotations

import warnings

import torch

from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.report.cures import FROM_SCORES, WRAPPED
from manifold_bench.bench.report.steps import USUAL
from manifold_bench.defenses.answers import NO_GRADIENT, evaluating
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.models import TO_NUMPY, Handed, handed, module_of, name_of

UNNAMED = tuple(USUAL)
"""The default of the argument `attacks`, which tells by its identity that none were named."""

FROM_DECISIONS: dict[str, dict[str, object]] = {
    norm: {"name": "art:HopSkipJump", "max_iter": 10} for norm in ("linf", "l2")
}
"""Norm → attack that uses decisions alone; it needs fewer queries than `square`."""


def usual_attacks(cls: type[Defense], dataset: str, norm: str) -> list[dict[str, object]]:
    """Return the tables of the attacks on a model for which none are named; warns where these are not by gradients.

    cls: class of the model. dataset: name of the data set. Raises InputError where there is no such data set.
    """
    made = handed(cls)
    if made is None or norm not in FROM_SCORES or gives_gradient(made, find("datasets", dataset).shape):
        return [{"name": name} for name in USUAL]
    chosen: list[dict[str, object]] = [{"name": FROM_SCORES[norm]}]
    chosen += [FROM_DECISIONS[norm]] if norm in FROM_DECISIONS else []
    names = " and ".join(str(one["name"]) for one in chosen)
    warnings.warn(
        f"{name_of(made.given)} has no gradient in its images, so it is attacked by queries ({names}); for attacks by "
        f"gradients, {WRAPPED}",
        stacklevel=4,
    )
    return chosen


def gives_gradient(cls: Handed, shape: tuple[int, int, int]) -> bool:
    """Return whether the outputs of the model in a class of `class_of` have a gradient in its images.

    The model is tried on two random images of that shape [C,H,W]. For a model that fails the answer is True, so that
    the attacks give the reason.
    """
    if isinstance(cls.given, Defense) and cls.given.gradient_modes != ("default",):
        return True  # its `attack_forward` has one
    try:
        module = module_of(cls.given)
        placed = next(iter([*module.parameters(), *module.buffers()]), torch.empty(0)).device
        images = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0)).to(placed, torch.float32)
        with evaluating(module), torch.enable_grad(), warnings.catch_warnings(action="ignore"):
            outputs = module(images.requires_grad_())
            return torch.autograd.grad(outputs.sum(), images, allow_unused=True)[0] is not None
    except NotImplementedError:  # of ART's classifiers, and of torch's quantized layers
        return False
    except Exception as error:  # a user's code may raise anything
        return not any(words in str(error) for words in (NO_GRADIENT, TO_NUMPY))
