"""The layers at both ends of a classifier give what torch's own do, gradients included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from manifold_bench.defenses.convolutions import DenseOnMaps, ImageConvolution


def pair(channels: int, made: int, kernel: int, stride: int, padding: int) -> tuple[ImageConvolution, nn.Conv2d]:
    """Ours and torch's, with the same frozen weights in float64."""
    torch.manual_seed(0)
    ours = ImageConvolution(channels, made, kernel, stride=stride, padding=padding).double().requires_grad_(False)
    own = nn.Conv2d(channels, made, kernel, stride=stride, padding=padding).double().requires_grad_(False)
    own.load_state_dict(ours.state_dict())
    return ours, own


def slope(layer: nn.Module, x: Tensor) -> Tensor:
    """The gradient of a function of its output that isn't linear; it can be differentiated again."""
    (gradient,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
    return gradient


@settings(deadline=None)
@given(
    channels=st.integers(1, 3),
    made=st.integers(1, 5),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
)
def test_it_is_a_convolution_with_its_gradient(channels, made, kernel, stride, padding, height, width):
    ours, own = pair(channels, made, kernel, stride, padding)
    x = torch.rand(2, channels, height, width, dtype=torch.float64, requires_grad=True)
    assert torch.equal(ours(x), own(x))
    torch.testing.assert_close(slope(ours, x), slope(own, x), rtol=0, atol=1e-12)


def test_the_gradient_has_a_gradient():
    ours, own = pair(1, 4, 3, 2, 1)
    x = torch.rand(2, 1, 7, 7, dtype=torch.float64, requires_grad=True)
    second = [torch.autograd.grad(slope(layer, x).square().sum(), x)[0] for layer in (ours, own)]
    assert second[0].abs().max() > 1e-3
    torch.testing.assert_close(*second, rtol=0, atol=1e-12)


def test_the_gradient_in_mixed_precision_is_the_image_s_own_type():
    ours, own = (layer.float() for layer in pair(1, 4, 3, 2, 1))
    x = torch.rand(2, 1, 7, 7, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        slopes = [torch.autograd.grad(layer(x).float().sin().sum(), x)[0] for layer in (ours, own)]
    assert slopes[0].dtype == torch.float32
    torch.testing.assert_close(*slopes, rtol=0, atol=0.02)


def test_an_image_s_gradient_is_the_same_bits_in_any_batch():
    ours, _ = pair(1, 32, 4, 2, 1)
    ours = ours.float().to(memory_format=torch.channels_last)
    x = torch.rand(256, 1, 28, 28, requires_grad=True)
    few = x[40:48].detach().requires_grad_(True)
    assert torch.equal(slope(ours, x)[40:48], slope(ours, few))


@pytest.mark.parametrize("mixed", [False, True])
def test_weights_that_learn_get_gradients(mixed):
    ours, own = pair(1, 4, 3, 2, 1)
    x = torch.rand(2, 1, 7, 7, requires_grad=True)
    for layer in (ours, own):
        layer.float().requires_grad_(True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            layer(x).float().square().sum().backward()
    assert torch.equal(ours.weight.grad, own.weight.grad) and ours.bias.grad is not None


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_dense_layer_on_maps_is_a_linear_layer_in_a_file_as_well(layout):
    torch.manual_seed(0)
    ours, own = DenseOnMaps(3, (4, 2), 5).double().to(memory_format=layout), nn.Linear(24, 5).double()
    ours.load_state_dict(own.state_dict())
    saved = ours.state_dict()
    assert saved.keys() == own.state_dict().keys() and torch.equal(saved["weight"], own.weight)
    x = torch.rand(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    laid = x.contiguous(memory_format=layout)
    torch.testing.assert_close(ours(laid), own(x.flatten(1)))
    slopes = [torch.autograd.grad(layer.square().sum(), x)[0] for layer in (ours(laid), own(x.flatten(1)))]
    torch.testing.assert_close(*slopes)


def test_a_dense_layer_on_maps_begins_as_a_linear_layer_does():
    torch.manual_seed(3)
    ours = DenseOnMaps(3, (4, 2), 5)
    torch.manual_seed(3)
    own = nn.Linear(24, 5)
    assert torch.equal(ours.weight.flatten(1), own.weight) and torch.equal(ours.bias, own.bias)


def test_weights_of_another_size_are_refused():
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        DenseOnMaps(3, (4, 2), 5).load_state_dict(nn.Linear(25, 5).state_dict())


def test_it_can_be_loaded_with_what_is_its_own():
    layer = DenseOnMaps(8, (1, 1), 5).to(memory_format=torch.channels_last)
    before = layer.weight.clone()
    layer.load_state_dict(layer.state_dict())
    assert torch.equal(layer.weight, before)
