"""Defenses that reject, with an answer known in closed form.

`Band` rejects a whole band between its two classes: who stops at `label ≠ y` stops there. `TwoDetectors` accepts three
strips of the plane of two pixels. `Walled` rejects everything between its two classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manifold_bench.attacks.contract import Verdict
from manifold_bench.defenses.base import append_reject_score

BAND = (0.5, 0.7)
MEANS, WIDTH, HEIGHT = torch.tensor([0.5, 0.8, 1.1]), 0.1, 0.3


class TwoClasses(nn.Module):
    """A defense, as far as attacks look at it, that tells images [N,1,2,2] of two classes apart, or rejects them."""

    shape = (1, 2, 2)
    num_classes = 2
    rejects = True
    randomized = False
    gradient_modes = ("default",)
    detectors = ()
    classifier = None


class Band(TwoClasses):
    """Images [N,1,2,2]; by the first pixel t: class 0 below the band, rejected within, class 1 above."""

    def forward(self, x: Tensor) -> Tensor:
        t = x[:, 0, 0, 0]
        middle, half = sum(BAND) / 2, (BAND[1] - BAND[0]) / 2
        return append_reject_score(torch.stack([BAND[1] - t, t - BAND[1]], dim=1), half - (t - middle).abs())

    def verdict(self, x: Tensor) -> Verdict:
        logits = self(x)
        return Verdict(logits[:, :2].argmax(1), logits.argmax(1) == 2)


class TwoDetectors(nn.Module):
    """Images [N,1,2,2]; by the first two pixels a, b and their sum u, the encoding: the class whose mean is nearest.

    Accepted within WIDTH of that mean, and with b within WIDTH of HEIGHT («on the manifold»): to take u to another
    class by both pixels alike is the shortest way there, and leads out of the strip.
    """

    shape = (1, 2, 2)
    num_classes = 3
    rejects = True
    randomized = False
    gradient_modes = ("default",)
    detectors = ("encoding", "reconstruction")

    def __init__(self) -> None:
        super().__init__()
        self.classifier = NearestMean()
        self.encoder = self.classifier.encoder

    def detection(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        u, logits = self.encoder(x), self.classifier(x)
        off_manifold = (x[:, 0, 0, 1] - HEIGHT).abs()

        def ratios(labels: Tensor) -> Tensor:
            return torch.stack([(u[:, 0] - MEANS[labels]).abs(), off_manifold], dim=1) / WIDTH

        return append_reject_score(logits, ratios(logits.argmax(1)).amax(1) - 1), ratios(labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.detection(x, torch.zeros(len(x), dtype=torch.long))[0]

    def verdict(self, x: Tensor) -> Verdict:
        logits = self(x)
        return Verdict(logits[:, :3].argmax(1), logits.argmax(1) == 3)

    def distance(self, x: Tensor, norm: str) -> Tensor:
        """From images of the middle class to the nearest point accepted as another, [N].

        u has to move by `gap`, of which b can take `room` and should take half.
        """
        u, b = self.encoder(x)[:, 0], x[:, 0, 0, 1]
        ways = []
        for gap, room in (
            (MEANS[2] - WIDTH - u, HEIGHT + WIDTH - b),
            (u - MEANS[0] - WIDTH, b - HEIGHT + WIDTH),
        ):
            along_b = torch.minimum(room, gap / 2)
            along_a = gap - along_b
            ways.append(torch.maximum(along_a, along_b) if norm == "linf" else (along_a**2 + along_b**2).sqrt())
        return torch.minimum(*ways)

    def images(self, n: int) -> tuple[Tensor, Tensor]:
        """n accepted images of the middle class, other pixels random; their labels."""
        random = torch.Generator().manual_seed(5)
        x = torch.rand(n, 1, 2, 2, generator=random)
        x[:, 0, 0, 1] = HEIGHT + WIDTH * (1.8 * torch.rand(n, generator=random) - 0.9)
        x[:, 0, 0, 0] = MEANS[1] + WIDTH * (1.8 * torch.rand(n, generator=random) - 0.9) - x[:, 0, 0, 1]
        return x, torch.ones(n, dtype=torch.long)

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Accepted images of every class, with their labels."""
        x, _ = self.images(30)
        labels = torch.arange(30) % 3
        x[:, 0, 0, 0] += MEANS[labels] - MEANS[1]
        return x, labels


class NearestMean(nn.Module):
    """The encoding u = a + b, and its distances² to the means."""

    @staticmethod
    def encoder(x: Tensor) -> Tensor:
        return x[:, 0, 0, :].sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return -(self.encoder(x) - MEANS).square()


class Walled(TwoClasses):
    """By the first pixel t: class 0 near .2, class 1 near .8; rejects further than `width` from the class' centre.

    It names no detectors: all that an attack sees is the reject score of the class it is in.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        distance = (x[:, 0, 0, :1] - torch.tensor([0.2, 0.8])).abs()
        return append_reject_score(-distance.square(), distance.amin(1) / self.width - 1)

    def verdict(self, x: Tensor) -> Verdict:
        logits = self(x)
        return Verdict(logits[:, :2].argmax(1), logits.argmax(1) == 2)


def images_below(n: int) -> tuple[Tensor, Tensor]:
    """n images of class 0 with t from .2 to .45, other pixels random; their labels."""
    x = torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    x[:, 0, 0, 0] = torch.linspace(0.2, 0.45, n)
    return x, torch.zeros(n, dtype=torch.long)
