"""Models that are judged by other answers than attacks see, or whose last output is misread: each is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import manifold_bench as mb
from manifold_bench.attacks.contract import Verdict, verdict_of
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.records.schema import DIVERTED
from manifold_bench.bench.running.remarks import levels_of_jumps
from manifold_bench.defenses.base import Defense, DefenseSpec, append_reject_score
from manifold_bench.defenses.weights import from_zoo

PGD = [{"name": "pgd", "steps": 10}]


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    test = find("datasets", "digits")().test
    return test.images[:32], test.labels[:32]


class OffTheGrid(nn.Module):
    """The undefended network for whole grey levels, and beside them a robust one, in whose ball attacks search."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.robust = from_zoo("undefended", "digits"), from_zoo("pgd-training", "digits")

    def forward(self, x: Tensor) -> Tensor:
        beside = ((16 * x - (16 * x).round()).abs() > 1e-3).flatten(1).any(1)
        return torch.where(beside[:, None], self.robust(x), self.plain(x))


class OtherVerdict(Defense):
    """Its verdict is that of another network than its forward."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.shown, self.used = from_zoo("undefended", "digits"), from_zoo("pgd-training", "digits")

    def forward(self, x: Tensor) -> Tensor:
        return self.shown(x)

    def verdict(self, x: Tensor) -> Verdict:
        return verdict_of(self.used(x), self.num_classes)


class WithRejectScore(nn.Module):
    """The undefended network with an eleventh output, which wins where no class is likely."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = from_zoo("undefended", "digits")

    def forward(self, x: Tensor) -> Tensor:
        logits = self.plain(x)
        return torch.cat([logits, torch.full_like(logits[:, :1], 4.0)], 1)


def test_images_beside_whole_grey_levels_get_other_answers(digits):
    found = mb.evaluate(OffTheGrid(), digits, attacks=PGD, eps=0.2)
    robust = mb.evaluate(from_zoo("pgd-training", "digits"), digits, attacks=PGD, eps=0.2)
    assert any(DIVERTED in reason for reason in found.records["reason"])
    assert "¶" in found.table["marks"].iloc[0] and "¶" not in robust.table["marks"].iloc[0]
    assert found.table["robust"].iloc[0] < robust.table["robust"].iloc[0] / 2  # since outputs are rounded


@pytest.mark.parametrize("name", ["undefended", "pgd-training", "gmvae", "magnet"])
def test_a_smooth_model_has_no_jump_beside_whole_grey_levels(digits, name):
    assert not levels_of_jumps(from_zoo(name, "digits").eval(), digits[0][:8])


def test_a_model_that_rounds_has_no_jump_beside_whole_grey_levels(digits):
    plain = from_zoo("undefended", "digits")
    for step in (torch.round, torch.floor, torch.ceil):
        for levels in (1, 2, 4, 8, 15, 16, 255):
            rounds = mb.as_defense(lambda x, q=levels, step=step: plain(step(q * x) / q), (1, 8, 8), 10)
            assert not levels_of_jumps(rounds, digits[0][:8]), (step, levels)
    assert not levels_of_jumps(mb.as_defense(lambda x: plain((x > 0).float()), (1, 8, 8), 10), digits[0][:8])


class RejectsOffTheGrid(nn.Module):
    """The undefended network, which rejects every image that has a pixel between two grey levels; softly, or not."""

    rejects = True

    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.plain, self.soft = from_zoo("undefended", "digits"), soft

    def forward(self, x: Tensor) -> Tensor:
        logits = self.plain(x)
        off = (16 * x - (16 * x).round()).abs().flatten(1).amax(1) - 1e-3
        excess = off if self.soft else (off > 0).float() - 0.5
        return append_reject_score(logits, excess)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("name", ["pgd", "apgd", "selective-pgd"])
def test_a_detector_of_pixels_between_grey_levels_is_attacked_through_rounding(digits, soft, name):
    attack = [{"name": name, "steps": 10}]
    found = mb.evaluate(RejectsOffTheGrid(soft), digits, attacks=attack, eps=[0.1, 0.2, 0.3])
    plain = mb.evaluate(from_zoo("undefended", "digits"), digits, attacks=PGD, eps=["1/16", "3/16", "4/16"])
    assert (found.table["robust"].to_numpy() <= plain.table["robust"].to_numpy() + 100 / 32).all()
    assert "¶" in found.table["marks"].iloc[0]


def test_a_verdict_that_differs_from_the_outputs(digits):
    found = mb.evaluate(OtherVerdict(DefenseSpec(shape=(1, 8, 8), num_classes=10)), digits, attacks=PGD, eps=0.1)
    assert any(DIVERTED in reason for reason in found.records["reason"])
    assert "¶" in found.table["marks"].iloc[0]


def test_a_reject_score_that_nobody_named(digits):
    def said(**options) -> bool:
        found = mb.evaluate(WithRejectScore(), digits, attacks=["noise"], eps=0.1, **options)
        return any("reject score" in reason for reason in found.records["reason"])

    assert said() and not said(rejects=True) and not said(n=16)


class FirstBatch(nn.Module):
    """Subtracts the mean of the first images that it ever sees."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.mean = from_zoo("undefended", "digits"), None

    def forward(self, x: Tensor) -> Tensor:
        self.mean = x.detach().mean(0) if self.mean is None else self.mean
        return self.plain(x - self.mean)


class NoiseByPlace(nn.Module):
    """Adds the same noise to images at the same place of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = from_zoo("undefended", "digits")

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))


class WithItsNeighbour(NoiseByPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.plain(0.9 * x + 0.1 * x.roll(1, 0))


def test_a_state_from_the_first_images_is_the_same_in_every_process(digits):
    first = FirstBatch()
    data = find("datasets", "digits")()
    first(data.test.images[list(data.chosen(24))[:8]])
    found, expected = (mb.evaluate(one, "digits", attacks=PGD, eps=0.1, n=24).table for one in (FirstBatch(), first))
    assert found[["clean", "robust"]].equals(expected[["clean", "robust"]])


@pytest.mark.parametrize("model", [NoiseByPlace, WithItsNeighbour])
def test_answers_that_depend_on_the_batch_are_said(digits, model):
    found = mb.evaluate(model(), digits, attacks=["noise"], eps=0.1)
    assert any(f"{DIVERTED}in another order of a batch" in reason for reason in found.records["reason"])
    assert "¶" in found.table["marks"].iloc[0]


def test_a_model_that_takes_no_single_image_is_no_error(digits):
    plain = from_zoo("undefended", "digits")
    found = mb.evaluate(lambda x: plain(x).squeeze(), digits, attacks=PGD, eps=0.1)
    assert set(found.records["status"]) == {"ok"} and set(found.records["reason"]) == {""}


def test_a_module_whose_forward_was_replaced_is_refused_and_stays_as_it_was(digits):
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    plain = net.forward
    net.forward = lambda images: plain(images.clamp(0, 1))  # type: ignore[method-assign]
    before = net[1].running_mean.clone()
    with pytest.raises(mb.InputError, match="calls the module itself"):
        mb.evaluate(net, digits, attacks=PGD, eps=0.1)
    assert torch.equal(before, net[1].running_mean)
