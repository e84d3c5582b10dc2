"""The overpowered attack as a measurement: what counts as found is said by the whole defense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manifold_bench.attacks.contract import Verdict
from manifold_bench.bench.measurements.overpowered import OverpoweredPairs
from manifold_bench.defenses.base import Defense, DefenseSpec

SPEC = DefenseSpec(shape=(1, 2, 2), num_classes=2)
SMALL = OverpoweredPairs(eta=(0.5, 0.1), pairs=12, steps=150)


class Plane(nn.Module):
    """z [N,2] → images [N,1,2,2]."""

    latent = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.1, 0.1, 0.0, 0.0], [0.0, 0.0, 0.1, 0.1]]), requires_grad=False)

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.weight + 0.5).view(-1, 1, 2, 2)


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1)[:, 0] - 0.5) * 10
        return torch.stack([score, -score], dim=1)


class Whole(Defense):
    """Answers as its classifier does; may take every image for the same, or accept none."""

    def __init__(self, one_answer: bool = False, closed: bool = False) -> None:
        super().__init__(SPEC)
        self.generator, self.classifier = Plane(), Halves()
        self.one_answer, self.closed = one_answer, closed

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x)

    def verdict(self, x: Tensor) -> Verdict:
        labels = self(x).argmax(1)
        return Verdict(0 * labels if self.one_answer else labels, torch.full((len(x),), self.closed))


NOTHING: Any = None


def measured(defense: Defense) -> dict[str, float]:
    return SMALL.measure(defense, {}, NOTHING, 0)


def test_pairs_across_a_boundary_are_found_at_every_eta_and_confident_ones_where_they_fit():
    """Probability .9 is 11 % of log-odds off the boundary on each side: .11 · √2 apart twice, less than .5."""
    values = measured(Whole())
    assert values["within 0.5"] == values["within 0.1"] == values["found"] == 1
    assert values["within 0.5, confidently"] > 0.9 and values["within 0.1, confidently"] == 0


@pytest.mark.parametrize("options", [{"one_answer": True}, {"closed": True}])
def test_what_the_whole_defense_rejects_or_answers_alike_is_not_found(options):
    assert set(measured(Whole(**options)).values()) == {0.0}
    assert SMALL.pictures(Whole(**options), NOTHING, 0) is None


def test_pictures_show_pairs():
    shown = SMALL.pictures(Whole(), NOTHING, 0)
    assert shown is not None and shown.shape == (2, 8, 1, 2, 2)
    assert (Halves()(shown[0]).argmax(1) != Halves()(shown[1]).argmax(1)).all()


def test_only_what_generates_and_classifies_is_measured():
    without = Whole()
    without.generator = None  # type: ignore[assignment]
    assert "no generator" in str(SMALL.unsuited(without)) and SMALL.unsuited(Whole()) is None
