"""A defense that projects on a plane: its optimum, its gradients and the distances to other classes are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manifold_bench.attacks.contract import Verdict

RANGE = torch.linalg.qr(torch.randn(16, 4, generator=torch.Generator().manual_seed(2)))[0] * 0.5
WEIGHT = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))


def generator(z: Tensor) -> Tensor:
    """[N,4] → [N,1,4,4] in a plane; ‖G z − G z′‖ = ‖z − z′‖ / 2."""
    return (z @ RANGE.T + 0.5).view(-1, 1, 4, 4)


IN_PLANE = generator(0.3 * torch.randn(24, 4, generator=torch.Generator().manual_seed(4)))
NEAR_PLANE = (IN_PLANE + 0.02 * torch.randn(IN_PLANE.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
"""Images [24,1,4,4] in the plane, and others a little away from it."""


def classifier(x: Tensor) -> Tensor:
    return (x - 0.5).flatten(1) @ WEIGHT.T


class Part(nn.Module):
    """A function as a module, so that a defense has it as one of its parts."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Projects(nn.Module):
    """C(G z*), z* by least squares: linear in the image. Rejects what is further than η from the plane."""

    num_classes = 3
    rejects = True
    randomized = False
    detectors = ()
    gradient_modes = ("default",)

    def __init__(self, eta: float = torch.inf) -> None:
        super().__init__()
        self.generator, self.classifier = Part(generator), Part(classifier)
        self.eta = torch.tensor(eta)

    def inverter(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ RANGE / 0.25

    def verdict(self, x: Tensor) -> Verdict:
        seen = generator(self.inverter(x))
        return Verdict(classifier(seen).argmax(1), (seen - x).flatten(1).norm(dim=1) > self.eta)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the L2 distance [N] to the nearest image of another class; near the plane, the way runs along it."""
        logits = classifier(generator(self.inverter(x)))
        gaps = logits.gather(1, y[:, None]) - logits
        along = (WEIGHT[y][:, None] - WEIGHT[None]) @ RANGE / 0.5
        return (gaps / along.norm(dim=2).clamp_min(1e-9)).masked_fill(gaps == 0, torch.inf).amin(1)
