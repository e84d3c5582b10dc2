"""Interval bound propagation: what a network can answer within an L∞ ball, layer by layer (Gowal et al. 2018,
https://arxiv.org/abs/1810.12715)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from manifold_bench.attacks.threat import allowed
from manifold_bench.defenses.networks import StridedCNN

ROUNDING = 1e-3
"""By how much a margin must be on the right side to count as proven: the bounds are computed in float64, the answers
that they are about in float32 or less, whose sums of a few thousand terms err by a tenth of this."""


def affine(layer: nn.Module, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return the box {z: |z − centre| ≤ radius} behind a layer W z + b: its centre W c + b and its radius |W| r."""
    own = {name: value.to(centre.dtype) for name, value in layer.named_parameters()}
    sizes = {name: value.abs() if name == "weight" else torch.zeros_like(value) for name, value in own.items()}
    return functional_call(layer, own, centre), functional_call(layer, sizes, radius)


def largest_margins(network: StridedCNN, x: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
    """Return upper bounds on z_j(x′) − z_y(x′) over all x′ within eps [N] of x [N,C,H,W] in L∞ → [N,K], 0 at j = y.

    The last layer's differences are bounded as one layer, which is tighter than the difference of its bounds.
    """
    reach = eps.view(-1, 1, 1, 1)
    lower, upper = (x - reach).clamp_min(0), (x + reach).clamp_max(1)
    for layer in (network.conv1, network.conv2, network.hidden):
        centre, radius = affine(layer, (upper + lower) / 2, (upper - lower) / 2)
        lower, upper = F.relu(centre - radius), F.relu(centre + radius)
    weight, bias = (value.to(x.dtype) for value in (network.output.weight, network.output.bias))
    ahead = weight - weight[labels][:, None]  # [N,K,H]
    centre, radius = ((upper + sign * lower) / 2 for sign in (1, -1))
    ahead_at_centre = (ahead @ centre[:, :, None])[:, :, 0] + bias - bias[labels][:, None]
    return ahead_at_centre + (ahead.abs() @ radius[:, :, None])[:, :, 0]


def proven(network: StridedCNN, x: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
    """Return whether bounds prove that each image within eps [N,E] of x [N,C,H,W] in L∞ gets `labels` [N], bool [N,E].

    False proves nothing. An image counts as within ε where the harness allows it as an adversarial one.
    """
    found = []
    with torch.no_grad():
        for reach in eps.double().unbind(1):
            margins = largest_margins(network, x.double(), labels, allowed("linf", reach))
            others = margins.scatter(1, labels[:, None], -torch.inf)
            found.append(others.amax(1) < -ROUNDING * margins.abs().amax(1).clamp_min(1))
    return torch.stack(found, dim=1)
