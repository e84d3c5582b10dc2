"""The training loop of all defenses: seeded, resumable at every epoch, and with progress."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from manifold_bench.defenses.base import LabelledImages, Progress
from manifold_bench.defenses.cuda_graphs import CapturedSteps
from manifold_bench.defenses.files import atomic_write, checked_file

Step = Callable[[Tensor, Tensor, float], Tensor]
"""A function of images [N,C,H,W], labels [N] and the share of the training that is done, in [0,1] → the loss."""


def hash_of(text: str) -> int:
    """Return a 56-bit hash of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


def minibatches(data: LabelledImages, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches of images and labels; a last batch of less than half the size is dropped."""
    order = torch.randperm(len(data), generator=generator).to(data.images.device)
    for rows in order.split(batch_size)[: batches_of(len(data), batch_size)]:
        yield data.images[rows], data.labels[rows]


def batches_of(images: int, batch_size: int) -> int:
    """Return the number of minibatches in an epoch."""
    whole, rest = divmod(images, batch_size)
    return whole + (2 * rest >= min(batch_size, images))


def initialise(module: nn.Module, seed: int) -> None:
    """Draw the initial weights of every layer again, with that seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in module.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()


@dataclass(frozen=True)
class Training:
    """The parameters of a training by Adam, with a one-cycle learning rate that peaks after a fifth of the training.

    stage: name of this training, for progress and checkpoints. epochs: number of passes over the data. batch_size:
    number of images in a step. rate: peak of the learning rate. betas: decays of Adam's means.
    mixed_precision: whether convolutions and dense layers compute in bfloat16 where the hardware supports it (weights
    stay float32). That is two to three times as fast; machines without such hardware get other weights.
    stored_as: type to which the final weights are rounded, so that their file is small.
    kinds: length of the cycle in which kinds of steps recur, such as 6 for five critic steps and one generator step.
    Steps of a kind may differ in images, labels and random numbers alone, because on a CUDA device each kind is
    captured as a CUDA graph. 0: nothing is captured.
    """

    stage: str
    seed: int
    epochs: int
    batch_size: int
    rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    mixed_precision: bool = False
    stored_as: torch.dtype = torch.float16
    kinds: int = field(default=0, repr=False)  # a checkpoint fits whether or not steps are captured


def train_module(
    module: nn.Module,
    step: Step,
    data: LabelledImages,
    training: Training,
    progress: Progress,
    evaluate: Callable[[], dict[str, float]] = dict,
) -> None:
    """Train `module` in place and leave it in eval mode.

    step: function that computes the loss of a batch. evaluate: function that returns figures to report after each
    epoch. With `progress.checkpoints` an unfinished training continues after its last complete epoch, and ends with the
    same weights as one that was never interrupted. Raises FloatingPointError if the loss is not finite.
    """
    seed, stage, epochs, rate = training.seed, training.stage, training.epochs, training.rate
    device = device_of(module)
    data = LabelledImages(data.images.to(device), data.labels.to(device))
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    captured = training.kinds > 0 and device.type == "cuda"
    peak = torch.tensor(rate, device=device) if captured else rate  # a graph reads the learning rate from a tensor
    optimizer = torch.optim.Adam(module.parameters(), lr=peak, betas=training.betas, capturable=captured)
    checkpoint = progress.checkpoints / f"{stage}.safetensors" if progress.checkpoints else None
    same_training = f"{training} on {len(data)} images"
    first = _resume(module, optimizer, checkpoint, same_training)
    batches = batches_of(len(data), training.batch_size)
    mixed_precision = training.mixed_precision and has_bfloat16(device)

    def learn(images: Tensor, labels: Tensor, done: float) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision, cache_enabled=not captured):
            loss = step(images, labels, done)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    graphs = CapturedSteps(learn, training.kinds, device) if captured else None
    for epoch in range(first, epochs):
        module.train()
        # an epoch's random numbers do not depend on earlier epochs, so that a resumed training draws the same ones
        generator = torch.Generator().manual_seed(hash_of(f"{seed}/{stage}/{epoch}"))
        total, count = torch.zeros((), dtype=torch.float64, device=device), 0
        with torch.random.fork_rng():
            torch.manual_seed(hash_of(f"{seed}/{stage}/{epoch}/torch"))  # dropout and noise inside the step
            for number, (images, labels) in enumerate(minibatches(data, training.batch_size, generator)):
                done = min(1.0, (epoch + number / batches) / epochs)
                set_rate(optimizer, rate * one_cycle(done))
                turn = epoch * batches + number
                loss = graphs(turn, images, labels, done) if graphs else learn(images, labels, done)
                total, count = total + loss, count + 1
        module.eval()
        if not torch.isfinite(total):
            raise FloatingPointError(f"training stage {stage!r}: the loss is not finite in epoch {epoch + 1}")
        figures = {"loss": total.item() / max(count, 1)} | evaluate()
        _save(module, optimizer, epoch + 1, checkpoint, same_training)
        progress.epoch(stage, epoch + 1, epochs, **figures)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(weight.to(training.stored_as))
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    module.eval()


def has_bfloat16(device: torch.device) -> bool:
    """Return whether that device multiplies bfloat16 in hardware."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def one_cycle(done: float, peak: float = 0.2) -> float:
    """Return the learning rate after a share `done` of the training, as a share of its peak.

    It rises linearly from 0.1 until the share `peak`, and then falls linearly to 0.01.
    """
    return 0.1 + 0.9 * done / peak if done < peak else max(0.01, (1 - done) / (1 - peak))


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's weights; the CPU for a module without weights."""
    return next((weight.device for weight in module.parameters()), torch.device("cpu"))


def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, device: torch.device) -> Tensor:
    """Return function(images) [N,...] on the CPU, computed batch by batch on that device and without gradient.

    The function gets copies of the images.
    """
    with torch.no_grad():
        return torch.cat([function(x.to(device, copy=True)).cpu() for x in images.split(500)])


def accuracy(module: nn.Module, data: LabelledImages) -> float:
    """Return the share of images for which the largest of the module's outputs is that of the label."""
    answers = in_batches(module, data.images, device_of(module)).argmax(1)
    return float((answers == data.labels).double().mean())


def epochs_for(budget: float, epochs: int, images: int) -> int:
    """Return a share `budget` of the epochs, at least 1; more for fewer than 10,000 images, to keep the steps."""
    return max(1, round(budget * epochs * max(1.0, 10_000 / images)))


def atomic_save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that is either complete or absent; tensors are stored in fewer bits if that is exact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # copies, since the format refuses tensors that share memory, as tied weights do
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    atomic_write(path, save({name: smallest(tensor) for name, tensor in plain.items()}, metadata))


def smallest(tensor: Tensor) -> Tensor:
    """Return a tensor in the smallest of float8 (e4m3) and float16 that holds every value exactly, or as it is."""
    if tensor.dtype == torch.float32:
        for dtype in (torch.float8_e4m3fn, torch.float16):
            small = tensor.to(dtype)
            if torch.equal(small.float(), tensor):
                return small
    return tensor


def _save(module: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, path: Path | None, training: str) -> None:
    if path is None:
        return
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
    atomic_save(tensors, path, {"epoch": json.dumps(epoch), "training": training})


def _resume(module: nn.Module, optimizer: torch.optim.Optimizer, path: Path | None, training: str) -> int:
    """Load the checkpoint of this training, if there is one, and return the number of its complete epochs, or else 0.

    A checkpoint that is damaged, or of another training, is ignored.
    """
    if path is None or not path.exists():
        return 0
    try:
        with safe_open(checked_file(path), "pt") as file:
            metadata = file.metadata()
            small = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return 0
    # in float16 Adam's number of steps could not rise above 2,048
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in small.items()}
    own = {n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")}
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if metadata.get("training") != training or {name: tensor.shape for name, tensor in own.items()} != shapes:
        return 0
    module.load_state_dict(own)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, field = name.split(".", 2)
            state.setdefault(int(number), {})[field] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(json.loads(metadata["epoch"]))
