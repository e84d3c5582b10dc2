"""Networks that classify images [N,C,H,W] in [0,1] → logits [N,K]; images are at least 8×8, unless stated otherwise."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.defenses.convolutions import DenseOnMaps, ImageConvolution


class StridedCNN(nn.Module):
    """A network of two 4×4 convolutions of stride 2 (`width`, 2·`width` channels) and a layer of `hidden` units.

    It is a wider form of the network that Wong et al. (2020, "Fast is better than free") train against PGD on MNIST.
    Strides in place of pooling make a pass several times cheaper at the same accuracy.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int = 32, hidden: int = 256) -> None:
        super().__init__()
        channels, height, rows = shape
        self.conv1 = ImageConvolution(channels, width, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.hidden = DenseOnMaps(2 * width, (height // 2 // 2, rows // 2 // 2), hidden)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv1(x), inplace=True)
        h = F.relu(self.conv2(h), inplace=True)
        return self.output(F.relu(self.hidden(h), inplace=True))


Letter = Literal["A", "B", "C", "D", "E", "F"]


def samangouei_classifier(letter: Letter, shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Return one of the classifiers A to F of Defense-GAN (Samangouei et al. 2018, appendix), padded as in their code.

    A: convolutions 64 5×5 and 64 5×5/2, and 128 dense units. B: convolutions 64 8×8/2, 128 6×6/2 and 128 5×5. C:
    convolutions 128 3×3 and 64 5×5/2, and 128 dense units. D: 200 and 200 dense units. All have ReLU and dropout. E is
    D without dropout, F is B without dropout. Raises ValueError for images that are too small.
    """
    channels, height, width = shape
    drop = nn.Identity if letter in "EF" else nn.Dropout
    if letter in "DE":
        hidden = [nn.Linear(math.prod(shape), 200), nn.ReLU(), drop(0.5), nn.Linear(200, 200), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(200, num_classes))
    least = 28 if letter in "BF" else 5
    if min(height, width) < least:
        raise ValueError(
            f"network {letter} needs images of at least {least}×{least}, and these are {height}×{width}; "
            "networks D and E take any size"
        )
    if letter in "BF":
        first = [drop(0.2), ImageConvolution(channels, 64, 8, stride=2, padding=3), nn.ReLU()]
        further = [nn.Conv2d(64, 128, 6, stride=2), nn.ReLU(), nn.Conv2d(128, 128, 5), nn.ReLU()]
        cells = math.prod(((size // 2 - 6) // 2 + 1) - 4 for size in (height, width))
        return nn.Sequential(*first, *further, nn.Flatten(), drop(0.5), nn.Linear(128 * cells, num_classes))
    maps, kernel = (64, 5) if letter == "A" else (128, 3)
    convolutions = [ImageConvolution(channels, maps, kernel, padding=kernel // 2), nn.ReLU()]
    convolutions += [nn.Conv2d(maps, 64, 5, stride=2), nn.ReLU()]
    cells = math.prod((size - 5) // 2 + 1 for size in (height, width))
    hidden = [nn.Flatten(), drop(0.25), nn.Linear(64 * cells, 128), nn.ReLU(), drop(0.5)]
    return nn.Sequential(*convolutions, *hidden, nn.Linear(128, num_classes))
