"""One training loop: seeded, and the same however often it was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_bench.bench.datasets.base import select
from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.gmvae import GaussianMixtureVAE
from manifold_bench.defenses.pgd_training import PGDTraining
from manifold_bench.defenses.training import (
    Training,
    accuracy,
    atomic_save,
    epochs_for,
    minibatches,
    one_cycle,
    train_module,
)
from manifold_bench.defenses.undefended import Undefended
from manifold_bench.defenses.variational_autoencoder import VariationalAutoencoder, VariationalAutoencoderSettings
from manifold_bench.defenses.wasserstein_gan import WassersteinGAN, WassersteinGANSettings
from manifold_bench.defenses.weights import weights_hash


class StopError(Exception):
    pass


class Journal(Progress):
    """Keeps checkpoints in a folder, notes the epochs, and interrupts after one of them."""

    def __init__(self, folder: Path | None = None, stop: tuple[str, int] | None = None) -> None:
        self.checkpoints, self.stop = folder, stop
        self.epochs: list[tuple[str, int]] = []

    def epoch(self, stage: str, done: int, epochs: int, **figures: float) -> None:
        self.epochs.append((stage, done))
        if self.stop == (stage, done):
            raise StopError


@pytest.fixture(scope="module")
def data() -> LabelledImages:
    random = torch.Generator().manual_seed(0)
    return LabelledImages(torch.rand(70, 1, 4, 4, generator=random), torch.randint(0, 3, (70,), generator=random))


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden = [nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(8, 3))


def train(
    module: nn.Module,
    data: LabelledImages,
    progress: Progress,
    *,
    seed: int = 0,
    epochs: int = 5,
    batch_size: int = 16,
    fail: int = -1,
) -> dict[str, Tensor]:
    """Five epochs with dropout and noise; raises in the step of that number."""
    steps = 0

    def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == fail:
            raise StopError
        return F.cross_entropy(module(images + 0.1 * torch.randn_like(images)), labels)

    train_module(
        module,
        step,
        data,
        Training(stage="s", seed=seed, epochs=epochs, batch_size=batch_size, rate=0.01, stored_as=torch.float32),
        progress,
    )
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stops", [[1], [4], [1, 2, 4]])
def test_a_resumed_training_ends_with_the_same_weights(tmp_path, data, stops):
    whole = train(network(), data, Progress())
    for stop in stops:
        with pytest.raises(StopError):
            train(network(seed=stops.index(stop)), data, Journal(tmp_path, ("s", stop)))
    torch.manual_seed(123)  # whatever the new process has drawn
    journal = Journal(tmp_path)
    assert same(train(network(seed=9), data, journal), whole)
    assert journal.epochs == [("s", epoch) for epoch in range(stops[-1] + 1, 6)]


def test_the_optimizer_counts_on_after_more_steps_than_float16_tells_apart(tmp_path, data):
    of_16 = select(data, range(16))
    whole = train(network(), of_16, Progress(), epochs=260, batch_size=2)
    with pytest.raises(StopError):
        train(network(), of_16, Journal(tmp_path, ("s", 256)), epochs=260, batch_size=2)
    assert same(train(network(), of_16, Journal(tmp_path), epochs=260, batch_size=2), whole)


def test_a_training_stopped_within_an_epoch_repeats_that_epoch(tmp_path, data):
    whole = train(network(), data, Progress())
    with pytest.raises(StopError):
        train(network(), data, Journal(tmp_path), fail=10)
    journal = Journal(tmp_path)
    assert same(train(network(seed=9), data, journal), whole)
    assert journal.epochs[0] == ("s", 3)


def test_a_finished_training_is_not_gone_on_with(tmp_path, data):
    whole = train(network(), data, Journal(tmp_path))
    journal = Journal(tmp_path)
    assert same(train(network(seed=9), data, journal), whole) and journal.epochs == []


@pytest.mark.parametrize("damage", ["truncated", "another network"])
def test_a_checkpoint_that_does_not_fit_is_left_aside(tmp_path, data, damage):
    whole = train(network(), data, Progress())
    with pytest.raises(StopError):
        train(
            network() if damage == "truncated" else nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
            data,
            Journal(tmp_path, ("s", 2)),
        )
    (checkpoint,) = tmp_path.iterdir()
    if damage == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    assert same(train(network(), data, Journal(tmp_path)), whole)


@pytest.mark.parametrize("other", [{"seed": 1}, {"epochs": 3}])
def test_a_checkpoint_of_another_training_is_left_aside(tmp_path, data, other):
    whole = train(network(), data, Progress())
    with pytest.raises(StopError):
        train(network(), data, Journal(tmp_path, ("s", 2)), **other)
    assert same(train(network(), data, Journal(tmp_path)), whole)


def test_seeds_decide_and_the_random_state_outside_does_not(data):
    first = train(network(), data, Progress())
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert same(train(network(), data, Progress()), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(train(network(), data, Progress(), seed=1), first)


SHAPE = {"shape": (1, 8, 8), "num_classes": 10}
TINY = {"width": 2, "hidden": 8}
ENCODER = {"latent": 3, "width": 2, "encoder_width": 2, "encoder_hidden": 4}
VAE = {"settings": VariationalAutoencoderSettings(**ENCODER, epochs=12)}
GAN = {"settings": WassersteinGANSettings(**ENCODER, epochs=12, batch_size=32, critic_steps=2)}


@pytest.mark.parametrize(
    ("cls", "more", "stop"),
    [
        (Undefended, TINY, ("classifier", 2)),
        (PGDTraining, TINY | {"steps": 2}, ("pgd-training", 2)),
        (GaussianMixtureVAE, TINY, ("gmvae", 1)),
        (VariationalAutoencoder, VAE, ("generator", 1)),
        (VariationalAutoencoder, VAE, ("encoder", 1)),
        (WassersteinGAN, GAN, ("wgan-gp", 2)),
    ],
    ids=["undefended", "pgd-training", "gmvae", "vae-generator", "vae-encoder", "wgan-gp"],
)
def test_every_training_resumes_to_the_same_weights(tmp_path, digits, cls, more, stop):
    train_on, spec = select(digits.train, range(0, 1000, 4)), cls.Spec(**SHAPE, **more)
    budget = 3 / 12 / epochs_for(1.0, 1, len(train_on))  # three epochs of twelve

    def fit(progress: Progress) -> str:
        defense = cls(spec)
        defense.fit(train_on, digits.validation, budget, 0, progress)
        return weights_hash(defense)

    whole = fit(Progress())
    with pytest.raises(StopError):
        fit(Journal(tmp_path, stop))
    torch.manual_seed(5)
    assert fit(Journal(tmp_path)) == whole


def test_the_learning_rate_goes_up_and_down_once():
    values = [one_cycle(done / 100) for done in range(101)]
    assert values[0] == pytest.approx(0.1) and values[20] == pytest.approx(1) and values[100] == pytest.approx(0.01)
    assert values[10] == pytest.approx(0.55) and values[60] == pytest.approx(0.5)
    assert values[:21] == sorted(values[:21]) and values[20:] == sorted(values[20:], reverse=True)


@given(n=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_minibatches_go_through_the_data_once(n, batch_size, seed):
    data = LabelledImages(torch.arange(float(n)).view(n, 1, 1, 1), torch.arange(n))
    batches = list(minibatches(data, batch_size, torch.Generator().manual_seed(seed)))
    rows = torch.cat([labels for _, labels in batches])
    assert len(set(rows.tolist())) == len(rows)
    assert all(torch.equal(images.flatten(), labels.float()) for images, labels in batches)
    sizes = [len(labels) for _, labels in batches]
    assert set(sizes[:-1]) <= {batch_size} and batch_size >= sizes[-1] >= min(n, batch_size) / 2
    assert n - len(rows) < batch_size / 2
    again = list(minibatches(data, batch_size, torch.Generator().manual_seed(seed)))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize(("n", "batch_size"), [(8, 4), (11, 4), (9, 4), (3, 4), (14, 4), pytest.param(10, 4)])
def test_the_share_done_never_reaches_into_the_next_epoch(n, batch_size):
    data = LabelledImages(torch.zeros(n, 1, 1, 1), torch.zeros(n, dtype=torch.long))
    module, seen = nn.Linear(1, 1), []

    def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
        seen.append(done)
        return module(images.flatten(1)).sum()

    train_module(
        module, step, data, Training(stage="s", seed=0, epochs=2, batch_size=batch_size, rate=0.01), Progress()
    )
    assert len(set(seen)) == len(seen) and max(seen) < 1


def test_budgets_are_shares_of_the_epochs():
    assert epochs_for(1.0, 12, 50_000) == 12
    assert epochs_for(0.5, 12, 10_000) == 6
    assert epochs_for(0.001, 12, 50_000) == 1
    assert epochs_for(1.0, 12, 1_000) == 120  # as many steps as on 10,000 images


def test_accuracy_by_hand():
    images = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]).view(3, 1, 1, 2)
    data = LabelledImages(images, torch.tensor([0, 1, 1]))
    assert accuracy(nn.Flatten(), data) == pytest.approx(2 / 3)


def test_a_loss_that_is_not_finite_ends_the_training(data):
    module = network()
    with pytest.raises(FloatingPointError, match="'s'"):
        train_module(
            module,
            lambda x, y, done: module(x).sum() * torch.inf,
            data,
            Training(stage="s", seed=0, epochs=2, batch_size=16, rate=0.01),
            Progress(),
        )


def test_a_file_is_complete_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x.safetensors"
    atomic_save({"a": torch.zeros(3)}, path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        atomic_save({"a": torch.ones(3)}, path)
    assert path.read_bytes() == before
