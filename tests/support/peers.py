"""The same attacks as others have them, on the same weights: bare loops, ART, Foolbox, torchattacks.

Each is a function of (module, x [N,C,H,W], y [N], ε) → adversarial images; the module counts its passes. It is made of
torch's own layers in torch's own layout, as their callers have it: what ours does for a pass to be cheaper is ours.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.attacks.from_art import module_classifier
from manifold_bench.attacks.from_foolbox import foolbox_model
from manifold_bench.defenses.convolutions import DenseOnMaps, ImageConvolution

Peer = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


def missing(library: str, attack: str) -> str | None:
    """Why a contestant can't take part here, or None."""
    if library == "torchattacks" and importlib.util.find_spec("torchattacks") is None:
        return "not installed (`pip install --no-deps torchattacks`: its pins would downgrade others)"
    if library == "ART" and attack == "AutoAttack" and importlib.util.find_spec("multiprocess") is None:
        return "its AutoAttack needs the package `multiprocess`"
    return None


def slope(module: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, loss [N] and gradient: one forward and one backward pass."""
    x = x.detach().requires_grad_(True)
    logits = module(x)
    values = loss(logits)
    return logits.detach(), values.detach(), torch.autograd.grad(values.sum(), x)[0]


def around(x: Tensor, point: Tensor, eps: float) -> Tensor:
    return torch.clamp(point, x - eps, x + eps).clamp(0, 1)


def bare_pgd(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """What a researcher writes in a notebook: every step for every input."""
    point = around(x, x + eps * (2 * torch.rand_like(x) - 1), eps)
    for _ in range(40):
        _, _, gradient = slope(module, point, lambda z: F.cross_entropy(z, y, reduction="none"))
        point = around(x, point + eps / 16 * gradient.sign(), eps)
    return point


def bare_mim(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    point, memory = x, torch.zeros_like(x)
    for _ in range(10):
        _, _, gradient = slope(module, point, lambda z: F.cross_entropy(z, y, reduction="none"))
        memory = memory + gradient / gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(1e-37)
        point = around(x, point + eps / 10 * memory.sign(), eps)
    return point


def bare_apgd(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Algorithm 1 of Croce & Hein 2020 for every input to its end; what was wrong once is kept."""

    def look(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return slope(module, point, lambda z: F.cross_entropy(z, y, reduction="none"))

    due, last = (22, 41, 57, 70, 80, 87, 93, 99), 0
    point = before = top = around(x, x + eps * (2 * torch.rand_like(x) - 1), eps)
    logits, value, gradient = look(point)
    found, top_gradient, most, most_before = point.clone(), gradient, value, value
    size, rises = torch.full_like(value, 2 * eps), torch.zeros_like(value)
    halved = torch.zeros_like(value, dtype=torch.bool)
    for step in range(1, 101):
        new = around(x, point + size.view(-1, 1, 1, 1) * gradient.sign(), eps)
        if step > 1:
            new = around(x, point + 0.75 * (new - point) + 0.25 * (point - before), eps)
        before, point, old = point, new, value
        logits, value, gradient = look(point)
        wrong = logits.argmax(1) != y
        found[wrong] = point[wrong]
        better = (value > most).view(-1, 1, 1, 1)
        top, top_gradient = torch.where(better, point, top), torch.where(better, gradient, top_gradient)
        rises, most = rises + (value > old), torch.maximum(most, value)
        if step in due:
            halve = (rises < 0.75 * (step - last)) | (~halved & (most <= most_before))
            size, wide = torch.where(halve, size / 2, size), halve.view(-1, 1, 1, 1)
            point, gradient = torch.where(wide, top, point), torch.where(wide, top_gradient, gradient)
            halved, most_before, rises, last = halve, most, torch.zeros_like(rises), step
    return found


def bare_deepfool(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """All ten gradients of every input until the last one is fooled."""
    point, rows = x.clone(), torch.arange(len(x))
    for _ in range(50):
        at = point.detach().requires_grad_(True)
        logits = module(at)
        slopes = torch.stack([torch.autograd.grad(logits[:, k].sum(), at, retain_graph=True)[0] for k in range(10)], 1)
        logits = logits.detach()
        going = logits.argmax(1) == y
        if not going.any():
            break
        w, f = slopes - slopes[rows, y][:, None], logits - logits[rows, y][:, None]
        lengths = w.flatten(2).norm(dim=2).clamp_min(1e-12)
        distances = (f.abs() / lengths).scatter(1, y[:, None], torch.inf)
        k = distances.argmin(1)
        step = ((f[rows, k].abs() + 1e-4) / lengths[rows, k].square()).view(-1, 1, 1, 1) * w[rows, k]
        point = torch.where(going.view(-1, 1, 1, 1), (point + 1.02 * step).clamp(0, 1), point)
    return point


CW = {"searches": 5, "steps": 100, "rate": 0.05, "c": 0.1}
"""Carlini–Wagner's budget here, the same for all."""


def bare_carlini_wagner(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    found, nearest = x.clone(), torch.full((len(x),), torch.inf)
    low, high, c = torch.zeros(len(x)), torch.full((len(x),), torch.inf), torch.full((len(x),), CW["c"])
    for _ in range(int(CW["searches"])):
        w = torch.atanh((2 * x - 1) * 0.999999).requires_grad_(True)
        adam, succeeded = torch.optim.Adam([w], lr=CW["rate"]), torch.zeros(len(x), dtype=torch.bool)
        for _ in range(int(CW["steps"])):
            image = (w.tanh() + 1) / 2
            logits = module(image)
            own = logits.gather(1, y[:, None])[:, 0]
            lead = logits.scatter(1, y[:, None], -torch.inf).amax(1) - own
            size = (image - x).square().flatten(1).sum(1)
            adam.zero_grad()
            (size + c * F.relu(-lead)).sum().backward()
            nearer = (lead > 0) & (size.sqrt() < nearest)
            succeeded |= lead > 0
            found[nearer], nearest[nearer] = image.detach()[nearer], size.detach().sqrt()[nearer]
            adam.step()
        high, low = torch.where(succeeded, c, high), torch.where(succeeded, low, c)
        c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
    return found


def art(name: str, **parameters: Any) -> Peer:
    """An ART attack class; a parameter that is a function is one of ε."""

    def run(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        import art.attacks.evasion as evasion

        given = {k: v(eps) if callable(v) else v for k, v in parameters.items()}
        classifier = module_classifier(module, tuple(x.shape[1:]), 10)
        with torch.enable_grad():
            attack = getattr(evasion, name)(classifier, **given)
            return torch.from_numpy(attack.generate(x.numpy(), y=F.one_hot(y, 10).numpy()))

    return run


def foolbox(name: str, minimal: bool = False, **parameters: Any) -> Peer:
    """A Foolbox attack class; a parameter that is a function is one of ε."""

    def run(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        model = foolbox_model(module)  # imports the library
        import foolbox as library

        given = {k: v(eps) if callable(v) else v for k, v in parameters.items()}
        return getattr(library.attacks, name)(**given)(model, x, y, epsilons=None if minimal else eps)[1]

    return run


def torchattacks(name: str, **parameters: Any) -> Peer:
    """A torchattacks class; a parameter that is a function is one of ε."""

    def run(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        import torchattacks as library

        given = {k: v(eps) if callable(v) else v for k, v in parameters.items()}
        return getattr(library, name)(module, **given)(x, y).detach()

    return run


def torchattacks_autoattack(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Its members with the reference's 100 steps: its own AutoAttack takes 10, and is weaker."""
    import torchattacks as library

    shared: dict[str, Any] = {"norm": "Linf", "eps": eps}
    members = [
        library.APGD(module, steps=100, loss="ce", **shared),
        library.APGDT(module, steps=100, n_classes=10, **shared),
        library.FAB(module, steps=100, multi_targeted=True, n_classes=10, **shared),
        library.Square(module, n_queries=5000, **shared),
    ]
    return library.MultiAttack(members)(x, y).detach()


def plain(defense: nn.Module) -> nn.Module:
    """A copy with the same weights, made of torch's own layers, the weights in torch's own layout."""
    copied = copy.deepcopy(defense).to(memory_format=torch.contiguous_format)
    for parent in list(copied.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, ImageConvolution):
                own = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
                setattr(parent, name, filled(own, layer))
            elif isinstance(layer, DenseOnMaps):
                dense = nn.Linear(layer.weight[0].numel(), layer.out_channels)
                setattr(parent, name, nn.Sequential(nn.Flatten(), filled(dense, layer)))
    return copied


def filled(own: nn.Module, layer: nn.Module) -> nn.Module:
    """With the weights of another that does the same, frozen."""
    own.load_state_dict(layer.state_dict())
    return own.requires_grad_(False)


class Counted(nn.Module):
    """A module whose passes are counted, all inputs together."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits = self.module(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._back(len(gradient)))
        return logits

    def _back(self, n: int) -> None:
        self.backwards += n
