"""What tests of loaders of published files share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.registry import find


def message(action: Callable[[], Any]) -> str:
    """The one line that a user reads."""
    with pytest.raises(InputError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


def answers(defense: str, dataset: type[Dataset], **parameters: Any) -> torch.Tensor:
    """The untrained defense's outputs for two images of that data set's shape."""
    cls = find("defenses", defense)
    built = cls(cls.Spec(shape=dataset.shape, num_classes=dataset.num_classes, **parameters)).eval()
    with torch.no_grad():
        return built(torch.rand(2, *dataset.shape))
