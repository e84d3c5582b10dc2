"""PixelDefend: what it changes in an image, the same in every batch, and the gradient that attacks take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from manifold_bench.attacks.batching import blockwise
from manifold_bench.defenses.pixel_cnn import PixelCNNSettings
from manifold_bench.defenses.pixel_defend import PixelDefend, PixelDefendSpec
from manifold_bench.defenses.training import initialise
from manifold_bench.defenses.weights import fill_from_zoo, freeze

SPEC = PixelDefendSpec(shape=(1, 8, 8), num_classes=10, pixelcnn=PixelCNNSettings(width=8, layers=2))


def defended(spec: PixelDefendSpec) -> PixelDefend:
    """A defense whose PixelCNN has random weights, and whose classifier is trained."""
    defense = PixelDefend(spec)
    fill_from_zoo(defense.classifier, "digits")
    initialise(defense.pixelcnn, 0)
    return freeze(defense)


@pytest.fixture
def defense() -> PixelDefend:
    return defended(SPEC)


def gradient(value: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(value.square().sum(), x)[0]


def test_it_classifies_the_decoded_image(defense, digits):
    x = digits.test.images[:16]
    decoded = defense.perceived(x)
    assert torch.equal(decoded, defense.pixelcnn.greedy(x, 16)) and not torch.equal(decoded, x)
    assert ((decoded - x).abs() <= 16.5 / 255 + 1e-6).all()
    assert torch.equal(defense(x), defense.classifier(decoded))
    assert not defense.randomized and torch.equal(defense(x), defense(x))


def test_without_a_window_it_only_rounds_to_8_bits(digits):
    defense = defended(replace(SPEC, eps_defend=0))
    x = (digits.test.images[:8] + torch.linspace(-0.001, 0.001, 64).view(1, 8, 8)).clamp(0, 1)
    assert torch.equal(defense.perceived(x), (x * 255).round() / 255)


def test_the_identity_gives_the_classifier_s_gradient_at_the_decoded_image(defense, digits):
    x = digits.test.images[:8].clone().requires_grad_(True)
    logits, _ = defense.attack_forward(x, "identity", None, 1)
    decoded = defense.perceived(x).requires_grad_(True)
    assert torch.equal(logits, defense(x))
    assert torch.allclose(gradient(logits, x), gradient(defense.classifier(decoded), decoded), atol=1e-6)


def test_an_image_is_decoded_to_the_same_bits_in_every_batch(defense, digits):
    """Otherwise one rounding could change a choice, and that all later ones."""
    x = digits.test.images[:40]
    together = blockwise(defense.perceived, x)
    assert torch.equal(together[:3], blockwise(defense.perceived, x[:3]))
    assert torch.equal(together, blockwise(defense.perceived, x, 8))
