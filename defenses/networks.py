"""Classifiers. All map images [N,C,H,W] in [0,1] to logits [N,K], for any image size from 8×8 up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StridedCNN(nn.Module):
    """Two 4×4 convolutions of stride 2 (`width`, 2·`width` channels) and a hidden layer.

    The shape Wong et al. (2020, "Fast is better than free") train against PGD on MNIST, wider: strides instead of
    pooling make a pass several times cheaper at the same accuracy.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int = 32, hidden: int = 256) -> None:
        super().__init__()
        channels, height, rows = shape
        cells = (height // 2 // 2) * (rows // 2 // 2)
        self.conv1 = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.hidden = nn.Linear(2 * width * cells, hidden)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.output(F.relu(self.hidden(torch.flatten(h, 1))))
