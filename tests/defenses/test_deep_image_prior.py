"""Deep image priors: networks as they are drawn, fits that know no company, and natural images before noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.defenses import deep_image_prior
from manifold_bench.defenses.deep_image_prior import DeepImagePrior, DeepImagePriorSpec, SkipNetworks
from manifold_bench.defenses.weights import fill_from_zoo, freeze, own_state

SPEC = DeepImagePriorSpec(shape=(1, 8, 8), num_classes=10, channels=8, skip=2, noise=4, steps=60)


def built(spec: DeepImagePriorSpec) -> DeepImagePrior:
    defense = DeepImagePrior(spec)
    return freeze(defense)


@pytest.fixture(scope="module")
def defense() -> DeepImagePrior:
    defense = DeepImagePrior(SPEC)
    fill_from_zoo(defense.classifier, "digits")
    return freeze(defense)


@pytest.fixture(scope="module")
def quick() -> DeepImagePrior:
    """Fits of three steps, for what holds whatever is fitted."""
    defense = DeepImagePrior(replace(SPEC, steps=3))
    fill_from_zoo(defense.classifier, "digits")
    return freeze(defense)


class Block(nn.Module):
    """A convolution, batch norm and a leaky ReLU."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.norm(self.convolution(x)), 0.2)


class Scale(nn.Module):
    """One scale of the network, for one image, of plain layers; `deeper` may be another."""

    def __init__(self, before: int, channels: int, skip: int, deeper: nn.Module) -> None:
        super().__init__()
        self.aside = Block(before, skip, 1)
        self.down = nn.Sequential(Block(before, channels, 3, 2), Block(channels, channels, 3))
        self.deeper = deeper
        self.norm = nn.BatchNorm2d(skip + channels)
        self.join = nn.Sequential(Block(skip + channels, channels, 3), Block(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        back = F.interpolate(self.deeper(self.down(x)), x.shape[2:], mode="bilinear")
        return self.join(self.norm(torch.cat([self.aside(x), back], 1)))


@pytest.mark.parametrize(("shape", "scales"), [((1, 8, 8), 1), ((3, 9, 13), 2), ((2, 16, 16), 3)])
def test_grouped_networks_are_one_network_for_each_image(shape, scales):
    networks = SkipNetworks(shape, scales, channels=6, skip=3, noise=5)
    rows = torch.stack([networks.random_weights(torch.Generator().manual_seed(i)) for i in range(3)])
    rows = rows + 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(9))  # scales and shifts, too
    z = torch.rand(3, *networks.entering, generator=torch.Generator().manual_seed(8))
    together = networks(networks.by_layer(rows), z)
    assert torch.equal(networks.by_image(networks.by_layer(rows), 3), rows)
    inner: nn.Module = nn.Identity()
    for depth in reversed(range(scales)):
        inner = Scale(6 if depth else 5, 6, 3, inner)
    alone = nn.Sequential(inner, nn.Conv2d(6, shape[0], 1))
    assert networks.size == sum(weight.numel() for weight in alone.parameters())
    for i, row in enumerate(rows):
        with torch.no_grad():
            for (name, weight), value in zip(
                alone.named_parameters(), row.split([w.numel() for w in alone.parameters()]), strict=True
            ):
                weight.copy_(value.view_as(weight) + name.endswith("norm.weight"))
            assert torch.allclose(alone(z[i : i + 1])[0].sigmoid(), together[i], atol=1e-5)


def test_a_network_begins_as_layers_of_torch_do():
    networks = SkipNetworks((1, 8, 8), 1, channels=8, skip=2, noise=4)
    weights = networks.random_weights(torch.Generator().manual_seed(0))
    for part, shape in zip(weights.split(networks.sizes), networks.shapes, strict=True):
        most = 0.0 if len(shape) == 1 else (shape[1] * shape[2] * shape[3]) ** -0.5
        assert 0.8 * most <= part.abs().max() <= most


def error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().flatten(1).mean(1)


def test_a_longer_fit_is_nearer(digits):
    x = digits.test.images[:8]
    errors = [error(built(replace(SPEC, steps=steps)).perceived(x), x).mean() for steps in (5, 20, 80)]
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]


def test_what_is_natural_is_learnt_before_what_is_not(defense, digits):
    """The prior itself: after the same steps digits are nearer to their fits than the same pixels in random places."""
    x = digits.test.images[:16]
    shuffled = x.flatten(1)[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))].view_as(x)
    natural, noise = (error(defense.perceived(images), images).mean() for images in (x, shuffled))
    assert natural < 0.8 * noise


def test_it_classifies_the_fit(defense, digits):
    x, y = digits.test.images[:16], digits.test.labels[:16]
    verdict = defense.verdict(x)
    assert torch.equal(verdict.labels, defense.classifier(defense.perceived(x)).argmax(1))
    assert not verdict.rejected.any() and (verdict.labels == y).float().mean() > 0.8


@pytest.mark.parametrize("batch_size", [8, 24, 40])
@pytest.mark.parametrize("at_once", [8, 32])
def test_answers_are_the_same_bits_in_any_batch(quick, digits, monkeypatch, batch_size, at_once):
    x = digits.test.images[:40]
    expected = blockwise(quick, x)
    monkeypatch.setattr(deep_image_prior, "AT_ONCE", at_once)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blockwise(quick, x[order], batch_size), expected[order])
    assert torch.equal(blockwise(quick, x[7:8]), expected[7:8])


def test_all_noise_comes_from_the_input_and_the_spec(quick, digits):
    x = digits.test.images[:8]
    torch.manual_seed(1)
    seen = quick.perceived(x)
    torch.manual_seed(2)
    assert torch.equal(quick.perceived(x), seen)
    assert not quick.randomized
    other = built(replace(quick.spec, seed=1)).perceived(x)
    assert (other - seen).flatten(1).abs().amax(1).min() > 1e-3


def test_an_input_a_bit_away_has_a_fit_of_its_own(quick):
    """Same place, same neighbours, one pixel's last bit: another seed."""
    x = torch.full((8, 1, 8, 8), 0.5)
    x[0, 0, 0, 0] = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    seen = quick.perceived(x)
    assert torch.equal(seen[1], seen[2]) and not torch.allclose(seen[0], seen[1], atol=1e-3)


def test_the_gradient_passes_the_fit_unchanged(quick, digits):
    x = digits.test.images[:8].clone().requires_grad_(True)
    (through,) = torch.autograd.grad(quick(x).square().sum(), x)
    seen = quick.perceived(x.detach()).requires_grad_(True)
    (own,) = torch.autograd.grad(quick.classifier(seen).square().sum(), seen)
    assert torch.allclose(through, own, rtol=1e-5, atol=1e-6)


def test_the_unrolled_gradient_is_that_of_the_last_steps():
    """Held against differences, in double precision and without jitter, whose seeds are the pixels."""
    defense = built(replace(SPEC, channels=4, scales=1, steps=12, jitter=0.0)).double()
    random = torch.Generator().manual_seed(0)
    x, weights, direction = torch.rand(3, 2, 1, 8, 8, dtype=torch.float64, generator=random)
    _, shared = defense.fit_networks(x, None, 4)

    def value(x: torch.Tensor) -> torch.Tensor:
        return (defense.fit_networks(x, shared, 4, unrolled=True)[0] * weights).sum()

    (gradient,) = torch.autograd.grad(value(point := x.clone().requires_grad_(True)), point)
    difference = (value(x + 1e-6 * direction) - value(x - 1e-6 * direction)) / 2e-6
    assert difference.abs() > 0.1 and (gradient * direction).sum() == pytest.approx(difference.item(), rel=1e-6)


def test_the_unrolled_fit_answers_as_the_deployed_one(quick, digits):
    x = digits.test.images[:6].clone().requires_grad_(True)
    logits, _ = quick.attack_forward(x, "unrolled", None, 2)
    assert torch.allclose(logits, quick(x.detach()), atol=1e-5)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert gradient.isfinite().all() and gradient.flatten(1).abs().amax(1).min() > 0
    assert not quick.fit_networks(x, None, 2)[0].requires_grad  # no graph is built where nobody needs it


def test_the_last_steps_alone_fit_an_image_near_by(defense, digits):
    """And as closely as the whole fit does, not more: the surrogate has to stop as early as what is deployed."""
    x = digits.test.images[:16]
    _, shared = defense.fit_networks(x, None, 20)
    near = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for _ in range(3):
        warm, again = defense.fit_networks(near, shared, 20)
        assert torch.equal(shared, again)
    whole = defense.perceived(near)
    stale = defense.perceived(x)
    assert error(warm, whole).mean() < error(stale, whole).mean()
    assert 0.7 < error(warm, near).mean() / error(whole, near).mean() < 1.4


def test_all_steps_anew_are_the_deployed_fit(defense, digits):
    x = digits.test.images[:8]
    fitted, shared = defense.fit_networks(x, None, defense.spec.steps)
    assert torch.equal(fitted, defense.perceived(x))
    assert torch.equal(fitted, defense.fit_networks(x, None, 7)[0])
    other, _ = defense.fit_networks(x.flip(0), shared, 1000)  # more than there are: all of them
    assert 0.7 < error(other, x.flip(0)).mean() / error(fitted, x).mean() < 1.4


def test_an_attack_takes_the_last_steps_and_the_full_fit_confirms_it(quick, digits, monkeypatch):
    calls = []
    fit = DeepImagePrior.fit_networks

    def recorded(self, x, start, inner_steps, unrolled=False):
        calls.append((start is not None, inner_steps))
        return fit(self, x, start, inner_steps, unrolled)

    monkeypatch.setattr(DeepImagePrior, "fit_networks", recorded)
    x, y = digits.test.images[:8], digits.test.labels[:8]
    target = Target(quick, len(x))
    view = target.view(inner_steps=2, warm_start=True)
    assert view.iterative and not view.exact
    for _ in range(2):
        view.answer(x, torch.arange(8))
    target.verdict(x, torch.arange(8))
    # after the first answer, clean images are answered in full, to decide the unit of the outputs
    assert calls == [(False, 2), (False, 3), (True, 2), (False, 3)]
    with pytest.raises(ValueError, match="identity"):
        target.view(gradient="implicit")
    found = PGD(steps=2, inner_steps=2, gradient="identity").run(target, x, y, 0.3, 0)
    assert (found - x).abs().max() <= 0.3 + 1e-6


def test_an_attack_on_an_input_is_the_same_in_any_company(quick, digits):
    x, y = digits.test.images[:12], digits.test.labels[:12]
    attack = PGD(steps=3, inner_steps=2, warm_start=True)
    together = attack.run(Target(quick, len(x)), x, y, 0.1, 0)
    alone = attack.run(Target(quick, 1), x[4:5], y[4:5], 0.1, 0)
    assert torch.equal(alone[0], together[4])


@pytest.mark.parametrize(("shape", "scales"), [((3, 32, 32), 2), ((3, 64, 64), 5), ((2, 9, 13), 2), ((4, 8, 8), 1)])
def test_images_of_any_size_and_channels(shape, scales):
    defense = built(DeepImagePriorSpec(shape=shape, num_classes=2, scales=scales, steps=2))
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    seen = defense.perceived(x)
    assert seen.shape == x.shape and seen.amin() >= 0 and seen.amax() <= 1
    assert defense(x).shape == (2, 2) and defense(x).isfinite().all()


@pytest.mark.parametrize(("side", "most"), [(8, 2), (9, 3), (28, 4), (32, 4), (64, 5)])
def test_no_more_scales_than_an_image_has(side, most):
    assert (
        built(DeepImagePriorSpec(shape=(1, side, 64), num_classes=2, scales=most, steps=1))
        .perceived(torch.rand(1, 1, side, 64))
        .isfinite()
        .all()
    )
    with pytest.raises(ValueError, match=f"scales: .* at most {most} .* not {most + 1}"):
        DeepImagePriorSpec(shape=(1, side, 64), num_classes=2, scales=most + 1)


def test_nothing_of_it_is_trained_but_the_classifier(defense):
    assert defense.parts == ("classifier",) and not own_state(defense)
