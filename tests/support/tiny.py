"""Systems small enough for a run of seconds, named in matrix files as `tiny:Name`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from manifold_bench.attacks.apgd import APGD
from manifold_bench.attacks.autoattack import AutoAttack
from manifold_bench.attacks.base import Attack, Knowledge
from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.fab import FAB
from manifold_bench.attacks.square import Square
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import NORMS, Norm
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.defenses.base import Defense, DefenseSpec, LabelledImages, Progress, append_reject_score
from manifold_bench.defenses.training import Training, accuracy, initialise, train_module


@dataclass(frozen=True)
class OneSplit(Dataset):
    """Images made up for a test, which serve for training and validation, too."""

    @property
    def train(self) -> LabelledImages:
        return self.test

    @property
    def validation(self) -> LabelledImages:
        return self.test


@dataclass(frozen=True)
class OnDisk(Digits):
    """The digits, provided that the data folder has a certain file."""

    name = "ondisk"
    revision = "1"

    @property
    def files(self) -> tuple[Path, ...]:
        assert self.data
        return (self.data / "below" / "password.txt",)

    @property
    def whole(self) -> LabelledImages:
        note(f"read {self.files[0]}")
        assert self.files[0].read_text(encoding="utf-8") == "open sesame"
        return super().whole


class NearestMean(Defense):
    """The class whose mean training digit is nearest: deterministic, linear, nothing to train."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        data = Digits().train
        self.register_buffer(
            "means", torch.stack([data.images[data.labels == c].mean(0) for c in range(10)]).flatten(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return (2 * x.flatten(1)[:, None] * self.means - self.means.square()).sum(2)


class FlatMean(NearestMean):
    """The same answers, from logits whose gradient is exactly zero."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach() + 0 * x.flatten(1).sum(1, keepdim=True)


class RoundsBySize(nn.Linear):
    """A linear layer whose answers are one bit larger in batches of fewer than 16 rows."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        RoundsBySize.calls += 1
        output = super().forward(x)
        return torch.nextafter(output, output + 1) if len(x) < 16 else output


class Uneven(NearestMean):
    """The nearest mean by a layer that rounds by the size of the batch."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.layer = RoundsBySize(64, 10)
        with torch.no_grad():
            self.layer.weight.copy_(2 * self.means)
            self.layer.bias.copy_(-self.means.square().sum(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class Coin(NearestMean):
    """Answers at random between the two nearest means."""

    randomized: ClassVar[bool] = True

    def verdict(self, x: Tensor) -> Verdict:
        two = self(x).topk(2, dim=1).indices
        labels = two.gather(1, torch.randint(0, 2, (len(x), 1)))[:, 0]
        return Verdict(labels, torch.zeros(len(x), dtype=torch.bool))


class Jury(NearestMean):
    """Answers by what the whole batch looks like: alone, an input is right; in a batch, all get one answer."""

    def verdict(self, x: Tensor) -> Verdict:
        labels = self(x).mean(0, keepdim=True).argmax(1).expand(len(x)) if len(x) > 1 else self(x).argmax(1)
        return Verdict(labels, torch.zeros(len(x), dtype=torch.bool))


class Wary(NearestMean):
    """Rejects what is brighter than half grey: no digit, and about half of all uniform noise."""

    @property
    def rejects(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        return append_reject_score(super().forward(x), x.mean((1, 2, 3)) - 0.5)


class Picky(NearestMean):
    """Made for the digits."""

    def __init__(self, spec: DefenseSpec) -> None:
        if spec.shape != (1, 8, 8):
            raise RuntimeError(f"no use for {spec.shape}\n(and a second line)")
        super().__init__(spec)


class Trained(Defense):
    """One layer, a few epochs of training; the environment can make it fail at once, or half way."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.layer = nn.Linear(64, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))

    def fit(
        self, train: LabelledImages, validation: LabelledImages, budget: float, seed: int, progress: Progress
    ) -> dict[str, float]:
        stop = float(os.environ.get("TINY_TRAINING_STOPS_AT", "inf"))
        time.sleep(float(os.environ.get("TINY_TRAINING_SECONDS", "0")))

        def step(images: Tensor, labels: Tensor, done: float) -> Tensor:
            if done >= stop:
                raise ArithmeticError("the loss went through the roof")
            return nn.functional.cross_entropy(self(images), labels)

        initialise(self, seed)
        train_module(
            self,
            step,
            train,
            Training(stage="layer", seed=seed, epochs=max(1, round(4 * budget)), batch_size=64, rate=0.05),
            progress,
        )
        return {"validation_accuracy": accuracy(self, validation)}


@dataclass(frozen=True, kw_only=True)
class DeployedSpec(DefenseSpec):
    """width: of the layer that is trained. bias: added to every logit of what has been."""

    width: int = 2
    bias: float = field(default=0.0, metadata={"deployment": True})


class Deployed(Trained):
    """As `Trained`, with a setting that its training knows nothing of."""

    Spec: ClassVar = DeployedSpec
    spec: DeployedSpec

    def __init__(self, spec: DeployedSpec) -> None:
        super().__init__(spec)
        self.layer = nn.Sequential(nn.Linear(64, spec.width), nn.Linear(spec.width, spec.num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.spec.bias


@dataclass(frozen=True, kw_only=True)
class Tiny(Attack):
    """What the attacks below share."""

    norms: ClassVar[tuple[Norm, ...]] = NORMS
    number: int = 0
    """Tells one from another."""

    @property
    def knowledge(self) -> Knowledge:
        return "decision"

    def passes(self) -> tuple[int, int]:
        return 1, 1

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return x


SEEN: list[tuple[float, int]] = []
"""The calls of `Step`, `Exact` and `Aimed` in this process: ε and the number of inputs."""


@dataclass(frozen=True, kw_only=True)
class Aimed(Tiny):
    """Replace every image by the attacker's own first one of the target class, or of a class `shift` further."""

    classes: Literal["wrong", "every"] = "wrong"
    shift: int = 0

    @property
    def aims(self) -> Literal["wrong", "every"]:
        return self.classes

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        assert target.aims is not None and target.aims.shape == y.shape
        SEEN.append((eps, len(x)))
        target.count(torch.arange(len(x)), 2, 1)
        images, labels = target.held_out()
        return torch.stack([images[labels == (aim + self.shift) % 10][0] for aim in target.aims])


@dataclass(frozen=True, kw_only=True)
class Slow(Tiny):
    """Random noise that takes its time: as many seconds as the environment says."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        time.sleep(float(os.environ.get("TINY_SECONDS", "0")))
        generator = torch.Generator().manual_seed(seed + self.number)
        return (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Logged(Slow):
    """As `Slow`; notes in a file when it begins and when it is done. A machine with a name it keeps busy on request."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        machine = os.environ.get("TINY_MACHINE")
        note(f"begun {self.number} {machine}")
        end = time.monotonic() + 60
        while machine and Path(os.environ["TINY_LOG"]).with_name("hold").exists() and time.monotonic() < end:
            time.sleep(0.1)
        found = super().run(target, x, y, eps, seed)
        note(f"done {self.number} {machine}")
        return found


def note(line: str) -> None:
    """Appends a line to the file that the environment names."""
    if path := os.environ.get("TINY_LOG"):
        with Path(path).open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")


@dataclass(frozen=True, kw_only=True)
class BriefAutoAttack(AutoAttack):
    """With a tenth of the steps, and fewer classes."""

    def members(self, classes: int) -> tuple[Attack, ...]:
        return (
            APGD(norm=self.norm, steps=5),
            APGD(norm=self.norm, loss="dlr", targets=2, steps=5),
            FAB(norm=self.norm, targets=2, steps=8),
            Square(norm=self.norm, queries=20),
        )


@dataclass(frozen=True, kw_only=True)
class Unsuited(Tiny):
    """Makes no sense anywhere."""

    def unsuited(self, defense: object) -> str | None:
        return "it makes no sense here"
