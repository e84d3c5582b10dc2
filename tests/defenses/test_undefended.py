"""The plain classifier, and what the trainings of the others borrow from it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from manifold_bench.attacks.batching import blockwise
from manifold_bench.bench.datasets.base import select
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.defenses.augmentation import shifted
from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.networks import StridedCNN
from manifold_bench.defenses.training import atomic_save, initialise
from manifold_bench.defenses.undefended import Undefended, UndefendedSpec
from manifold_bench.defenses.weights import weights_hash


def small() -> Undefended:
    return Undefended(Undefended.Spec(shape=(1, 8, 8), num_classes=10, width=8, hidden=32))


def fitted(digits: Digits, seed: int = 0, budget: float = 0.02) -> tuple[Undefended, dict[str, float]]:
    defense = small()
    train: LabelledImages = select(digits.train, range(0, 1000, 4))
    figures = defense.fit(train, digits.validation, budget, seed, Progress())
    return defense, figures


@pytest.fixture(scope="module")
def defense(digits) -> Undefended:
    return fitted(digits, budget=0.15)[0]


def test_it_learns_and_answers_for_every_class(defense, digits):
    logits = blockwise(defense, digits.test.images)
    assert logits.shape == (500, 10) and not defense.rejects
    assert (logits.argmax(1) == digits.test.labels).float().mean() > 0.7
    verdict = defense.verdict(digits.test.images[:64])
    assert torch.equal(verdict.labels, defense(digits.test.images[:64]).argmax(1))
    assert not verdict.rejected.any()


def test_fit_leaves_it_in_eval_mode(defense):
    assert not defense.training


@pytest.mark.parametrize("batch_size", [1, 8, 30, 64])
def test_answers_are_the_same_bits_in_any_batch(defense, digits, batch_size):
    x = digits.test.images[::5]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(blockwise(defense, x[order], batch_size), blockwise(defense, x)[order])


def test_a_seed_gives_the_same_weights_whatever_happened_before(digits):
    torch.manual_seed(1)
    first, figures = fitted(digits)
    torch.manual_seed(2)
    again, same = fitted(digits)
    other, _ = fitted(digits, seed=1)
    assert weights_hash(first) == weights_hash(again) != weights_hash(other)
    assert figures == same and 0 <= figures["validation_accuracy"] <= 1


def test_initial_weights_come_from_their_seed_alone():
    a, b = StridedCNN((1, 8, 8), 10, 2, 4), StridedCNN((1, 8, 8), 10, 2, 4)
    before = torch.get_rng_state()
    initialise(a, 5)
    initialise(b, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    initialise(b, 6)
    assert not torch.equal(a.output.weight, b.output.weight)


def of_network(**given) -> UndefendedSpec:
    return UndefendedSpec(shape=(1, 8, 8), num_classes=10, **given)


def test_samangouei_classifier_networks_are_trained_as_in_their_paper_by_default():
    assert (of_network().epochs, of_network().rate) == (12, 2e-3)
    assert (of_network(network="A").epochs, of_network(network="A").rate) == (10, 1e-3)
    assert of_network(network="A", epochs=2).epochs == 2
    assert of_network(epochs=12, rate=2e-3) == of_network()


@pytest.mark.parametrize("size", ["width", "hidden"])
def test_a_samangouei_classifier_network_has_a_size_of_its_own(size):
    with pytest.raises(ValueError, match=f"{size}: network D has a fixed size; leave it out"):
        of_network(network="D", **{size: 7})
    of_network(**{size: 7})


def test_a_samangouei_classifier_network_learns_and_is_small_on_disk(digits, tmp_path):
    defense = Undefended(of_network(network="D"))
    figures = defense.fit(digits.train, digits.validation, 0.1, 0, Progress())
    assert figures["validation_accuracy"] > 0.7 and not defense.training
    atomic_save(defense.state_dict(), tmp_path / "d.safetensors")
    assert {weights.dtype for weights in load_file(tmp_path / "d.safetensors").values()} == {torch.float8_e4m3fn}
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    x = digits.test.images[:60]
    assert torch.equal(blockwise(defense, x[order], 8), blockwise(defense, x)[order])


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 9)])
def test_shifted_images_are_the_images_moved(shape):
    images = torch.rand(40, *shape, generator=torch.Generator().manual_seed(0)) + 0.1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        moved = shifted(images, 2)
    padded = torch.nn.functional.pad(images, [2] * 4)
    height, width = shape[1:]
    seen = set()
    for before, after in zip(padded, moved, strict=True):
        places = [
            (i, j) for i in range(5) for j in range(5) if torch.equal(before[:, i : i + height, j : j + width], after)
        ]
        assert len(places) == 1
        seen |= set(places)
    assert len(seen) > 10 and {i for i, _ in seen} == {j for _, j in seen} == set(range(5))
    assert torch.equal(shifted(images, 0), images)
