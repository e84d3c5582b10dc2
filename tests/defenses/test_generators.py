"""Generators: shortcuts give what the layers that they stand for give."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from manifold_bench.defenses.decoders import DeconvolutionalGenerator, UpsamplingDecoder, phases


@pytest.mark.parametrize(("maps", "made", "size"), [(1, 1, (1, 1)), (5, 3, (4, 7)), (8, 1, (14, 14))])
def test_phases_are_the_transposed_convolution(maps, made, size):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, maps, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(maps, made, 5, 5, generator=generator, dtype=torch.float64)
    expected = F.conv_transpose2d(h, weight, stride=2, padding=2, output_padding=1)
    torch.testing.assert_close(F.pixel_shuffle(F.conv2d(h, phases(weight), padding=1), 2), expected)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 10), (1, 28, 28)])
def test_the_generator_is_its_layers_one_after_the_other(shape):
    torch.manual_seed(0)
    generator = DeconvolutionalGenerator(shape, 6, width=2).double()
    z = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    h = generator.dense(z).unflatten(1, (-1, *generator.sizes[0]))
    for layer, (height, rows) in zip(generator.layers, generator.sizes[1:], strict=True):
        h = layer(F.relu(h))[:, :, :height, :rows]
    images, expected = generator(z), torch.sigmoid(h)
    torch.testing.assert_close(images, expected)
    learnt = [z, *generator.parameters()]
    slopes = torch.autograd.grad(images.square().sum(), learnt)
    torch.testing.assert_close(slopes, torch.autograd.grad(expected.square().sum(), learnt))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 10), (3, 10, 14), (1, 28, 28)])
def test_the_upsampling_decoder_is_its_layers_one_after_the_other(shape):
    torch.manual_seed(0)
    decoder = UpsamplingDecoder(shape, 6, width=2, hidden=5).double()
    z = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    h = F.relu(decoder.dense2(F.relu(decoder.dense1(z)))).unflatten(1, (-1, *decoder.sizes[0]))
    for layer, size in zip(decoder.layers, decoder.sizes[1:], strict=True):
        h = layer(F.interpolate(F.relu(h), size=size))
    images, expected = decoder(z), torch.sigmoid(h)
    torch.testing.assert_close(images, expected)
    learnt = [z, *decoder.parameters()]
    slopes = torch.autograd.grad(images.square().sum(), learnt)
    torch.testing.assert_close(slopes, torch.autograd.grad(expected.square().sum(), learnt))
