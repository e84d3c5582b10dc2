"""The PixelCNN: what each sub-pixel's distribution depends on, decoding as defined, and what a training reaches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from manifold_bench.defenses.base import Progress
from manifold_bench.defenses.pixel_cnn import PixelCNN, PixelCNNSettings, PixelCNNSpec
from manifold_bench.defenses.training import initialise

SIZES = PixelCNNSettings(width=4, layers=2, epochs=1)


def model(shape: tuple[int, int, int], sizes: PixelCNNSettings = SIZES) -> PixelCNN:
    """A model with random weights that are large enough for its answers to depend on all that it sees."""
    one = PixelCNN(PixelCNNSpec(shape=shape, num_classes=10, settings=sizes)).double()
    initialise(one, 0)
    with torch.no_grad():
        for weight in one.parameters():
            weight.mul_(2)
    return one.eval()


def images(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(2, 7), st.integers(2, 7))


@settings(max_examples=25)
@given(SHAPES, st.integers(1, 4), st.data())
def test_a_sub_pixel_depends_on_those_before_it_alone(shape, layers, data):
    """Raster order of pixels, then of channels: index i·W·C + j·C + c."""
    channels, height, width = shape
    i, j, c = (data.draw(st.integers(0, size - 1)) for size in (height, width, channels))
    x = images(2, shape).requires_grad_(True)
    logits = model(shape, PixelCNNSettings(width=4, layers=layers))(x)
    assert logits.shape == (2, 256, *shape)
    (gradient,) = torch.autograd.grad(logits[:, :, c, i, j].square().sum(), x)
    ordered = gradient.permute(0, 2, 3, 1).flatten(1)
    own = (i * width + j) * channels + c
    assert not ordered[:, own:].any()
    if c or j:  # the sub-pixel just before it is seen; at the start of a row that one is far away
        assert ordered[:, own - 1].all()
    elif i:
        assert gradient[:, :, i - 1, j].all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_probabilities_sum_to_one_and_bits_are_theirs(shape):
    one, x = model(shape), (images(3, shape) * 255).round() / 255
    likely = one(x).softmax(1)
    assert torch.allclose(likely.sum(1), torch.ones(3, *shape, dtype=torch.float64))
    own = likely.gather(1, (x * 255).round().long()[:, None])[:, 0]
    assert torch.allclose(one.bits(x), -own.log2().flatten(1).mean(1))


def decoded(one: PixelCNN, x: Tensor, eps: int) -> Tensor:
    """Greedy decoding, by definition: the whole network is evaluated for every sub-pixel."""
    own = (x * 255).round().long()
    image = own.to(x.dtype) / 255
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            for c in range(x.shape[1]):
                logits = one(image)[:, :, c, i, j]
                near = (torch.arange(256) - own[:, c, i, j, None]).abs() <= eps
                image[:, c, i, j] = logits.masked_fill(~near, -math.inf).argmax(1).to(x.dtype) / 255
    return image


@pytest.mark.parametrize("eps", [0, 16, 77, 255])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (2, 1, 3)])
def test_kept_maps_give_what_the_whole_network_gives(shape, eps):
    one, x = model(shape, PixelCNNSettings(width=4, layers=3)), images(4, shape)
    with torch.no_grad():
        found, expected = one.greedy(x, eps), decoded(one, x, eps)
    assert torch.equal(found, expected)
    assert ((found - x).abs() <= (eps + 0.5 + 1e-9) / 255).all() and found.amin() >= 0 and found.amax() <= 1
    assert torch.equal((found * 255).round() / 255, found)
    assert torch.equal(found, (x * 255).round() / 255) == (eps == 0)


@pytest.mark.slow
def test_training_learns_which_values_are_likely(digits):
    """The digits have 17 of the 256 values; a model that knows nothing needs 8 bits."""
    sizes = PixelCNNSettings(width=8, layers=2, rate=5e-3)
    one = PixelCNN(PixelCNNSpec(shape=(1, 8, 8), num_classes=10, settings=sizes))
    initialise(one, 0)
    with torch.no_grad():
        before = float(one.bits(digits.validation.images).mean())
    figures = one.fit(digits.train, digits.validation, 0.4, 0, Progress())
    assert before > 7.5 and figures["validation_bits_per_dimension"] < before - 2 and not one.training
    with torch.no_grad():
        bits = F.cross_entropy(one(digits.validation.images), (digits.validation.images * 255).round().long())
    assert figures["validation_bits_per_dimension"] == pytest.approx(float(bits) / math.log(2), rel=1e-3)
