"""Defense-GAN's classifiers have the shapes of its code, for any image they can take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manifold_bench.defenses.networks import samangouei_classifier

SIZES = {"A": 1_285_194, "B": 710_218, "C": 1_387_210, "D": 199_210, "E": 199_210, "F": 710_218}
"""Parameters on MNIST, by hand from the layers' table and the reference code's padding."""


def drops(network: nn.Module) -> list[float]:
    return [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)]


@pytest.mark.parametrize("letter", SIZES)
def test_sizes_on_mnist(letter):
    network = samangouei_classifier(letter, (1, 28, 28), 10)
    assert sum(weights.numel() for weights in network.parameters()) == SIZES[letter]
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_dropout_is_the_paper_s_and_e_and_f_have_none():
    found = {letter: drops(samangouei_classifier(letter, (1, 28, 28), 10)) for letter in SIZES}
    assert found == {"A": [0.25, 0.5], "B": [0.2, 0.5], "C": [0.25, 0.5], "D": [0.5], "E": [], "F": []}


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 33, 28), (3, 29, 31), (1, 30, 30)])
@pytest.mark.parametrize("letter", SIZES)
def test_any_image_that_is_large_enough(letter, shape):
    assert samangouei_classifier(letter, shape, 7).eval()(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("letter", "ACDE")
def test_small_images_where_they_make_sense(letter):
    assert samangouei_classifier(letter, (1, 8, 8), 10)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("letter", "shape", "least"), [("B", (1, 8, 8), 28), ("F", (3, 32, 27), 28), ("A", (1, 4, 9), 5)]
)
def test_too_small_images_are_refused(letter, shape, least):
    with pytest.raises(
        ValueError,
        match=f"network {letter} needs images of at least {least}×{least}, and these are {shape[1]}×{shape[2]}",
    ):
        samangouei_classifier(letter, shape, 10)


@pytest.mark.parametrize(("with_drops", "without"), ["DE", "BF"])
def test_without_dropout_it_is_the_same_function(with_drops, without):
    first, second = (samangouei_classifier(letter, (1, 28, 28), 10).eval() for letter in (with_drops, without))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        other.data.copy_(one)
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(first(x), second(x)) and torch.equal(second.train()(x), second.eval()(x))
