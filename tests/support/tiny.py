"""Systems small enough for a run of seconds, good and bad ones, named in matrix files as `tiny:Name`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from manifold_bench.attacks.apgd import APGD
from manifold_bench.attacks.autoattack import AutoAttack
from manifold_bench.attacks.base import Attack, Knowledge, ViewAttack
from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.fab import FAB
from manifold_bench.attacks.square import Square
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import NORMS, Norm
from manifold_bench.bench.datasets.base import Dataset
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.defenses.base import Defense, DefenseSpec, LabelledImages, Progress, append_reject_score
from manifold_bench.defenses.training import Training, accuracy, initialise, train_module

WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 1.5])
BIAS = -0.5


@dataclass(frozen=True)
class Grey(Dataset):
    """Images of 2×2 pixels so far inside [0,1] that the closed forms hold; the labels are those of `Linear`.

    Every sixth label is the wrong one, so that some inputs are beaten before any attack.
    """

    name = "grey"
    shape = (1, 2, 2)
    num_classes = 2
    revision = "1"
    zoo = "grey"

    @cached_property
    def test(self) -> LabelledImages:
        images = 0.35 + 0.3 * torch.rand(24, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        labels = (images.flatten(1) @ WEIGHTS + BIAS > 0).long()
        return LabelledImages(images, torch.where(torch.arange(24) % 6 == 0, 1 - labels, labels))

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


class Linear(Defense):
    """Two classes, logits 0 and w·x + b: the distance to the boundary is |w·x + b| / ‖w‖ in the dual norm."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.register_buffer("weights", WEIGHTS.clone())

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1) * self.weights).sum(1) + BIAS
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Flat(Linear):
    """The answers of `Linear`, from logits whose gradient is exactly zero."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach() + 0 * x.flatten(1).sum(1, keepdim=True)


class Overflowing(Linear):
    """As `Linear`, with a gradient that is not finite."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + ((x - x.detach()).abs().sqrt()).flatten(1).sum(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Wanders(ViewAttack):
    """Asks about points along the way beyond the boundary of `Linear`, and returns the input."""

    minimal = True

    def passes(self) -> tuple[int, int]:
        return 20, 0

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        view, score = self.view(target), x.flatten(1) @ WEIGHTS + BIAS
        direction = (-score / WEIGHTS.square().sum()).view(-1, 1, 1, 1) * WEIGHTS.view(1, 1, 2, 2)
        for share in torch.linspace(1.55, 0.55, 11).tolist():
            view.answer(x + share * direction, torch.arange(len(x)))
        return x


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


class NanLogits(NearestMean):
    """No number for any input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.nan


class NanWhereAttacked(NearestMean):
    """No number for what is not a digit of 17 grey levels: as good as an answer, to a careless judge."""

    def forward(self, x: Tensor) -> Tensor:
        level = (x * 16 - (x * 16).round()).abs().flatten(1).amax(1) < 1e-4
        return torch.where(level[:, None], super().forward(x), torch.nan)


class TooManyOutputs(NearestMean):
    """Two outputs more than classes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x), torch.full((len(x), 2), 1e3)], dim=1)


class TooFewOutputs(NearestMean):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :4]


class Dies(NearestMean):
    """Takes its process with it."""

    def forward(self, x: Tensor) -> Tensor:
        os._exit(3)


class Hangs(NearestMean):
    """Never answers."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(3600)
        return super().forward(x)


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


@dataclass(frozen=True, kw_only=True)
class Step(Tiny):
    """Moves every pixel by ε away from the label of `Linear`: exact in L∞."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        SEEN.append((eps, len(x)))
        target.count(torch.arange(len(x)), 1, 1)
        away = (1 - 2 * y).view(-1, 1, 1, 1)
        return x + eps * away * WEIGHTS.sign().view(1, 1, 2, 2)


SEEN: list[tuple[float, int]] = []
"""What `Step`, `Exact` and `Aimed` were asked in this process: ε and the number of inputs."""


@dataclass(frozen=True, kw_only=True)
class Backwards(Tiny):
    """Finds every input at the smallest ε and none at a larger one."""

    smallest: float

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return Step(norm=self.norm).run(target, x, y, eps, seed) if eps == self.smallest else x


@dataclass(frozen=True, kw_only=True)
class Exact(Tiny):
    """The smallest perturbation of `Linear` in L2, a hair beyond the boundary; NaN where `fails` says so."""

    fails: bool = False

    @property
    def minimal(self) -> bool:
        return True

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        SEEN.append((eps, len(x)))
        target.count(torch.arange(len(x)), 7, 3)
        if self.fails:
            return torch.full_like(x, torch.nan)
        score = x.flatten(1) @ WEIGHTS + BIAS
        step = -score * 1.0001 / WEIGHTS.square().sum()
        return x + step.view(-1, 1, 1, 1) * WEIGHTS.view(1, 1, 2, 2)


@dataclass(frozen=True, kw_only=True)
class Aimed(Tiny):
    """Puts in place of every image the attacker's own first one of the class aimed at, or `beside` it."""

    classes: Literal["wrong", "every"] = "wrong"
    beside: int = 0

    @property
    def aims(self) -> Literal["wrong", "every"]:
        return self.classes

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        assert target.aims is not None and target.aims.shape == y.shape
        SEEN.append((eps, len(x)))
        target.count(torch.arange(len(x)), 2, 1)
        images, labels = target.held_out()
        return torch.stack([images[labels == (aim + self.beside) % 10][0] for aim in target.aims])


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
class Raises(Tiny):
    """Breaks, unless the environment says that it was mended."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        if "TINY_MENDED" not in os.environ:
            raise ArithmeticError("out of luck\nand a second line")
        return x


@dataclass(frozen=True, kw_only=True)
class OutsideBall(Tiny):
    """Another digit altogether, whatever ε."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return x.flip(0)


@dataclass(frozen=True, kw_only=True)
class OutsideBox(Tiny):
    """Within ε, but no image."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return x - eps


@dataclass(frozen=True, kw_only=True)
class NanPixels(Tiny):
    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return torch.full_like(x, torch.nan)


@dataclass(frozen=True, kw_only=True)
class WrongShape(Tiny):
    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return x[:1]


@dataclass(frozen=True, kw_only=True)
class NoTensor(Tiny):
    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return None  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class InPlace(Tiny):
    """Makes its input and its labels its own: an ε of 1 that passes for 0 where originals are not kept safe."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        x.copy_(x.flip(0))
        y.zero_()
        return x


@dataclass(frozen=True, kw_only=True)
class Vandal(Tiny):
    """Breaks the defense itself, so that the next one to load it would find it broken."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        target.defense.means.zero_()  # type: ignore[attr-defined]
        return x


@dataclass(frozen=True, kw_only=True)
class Kills(Tiny):
    """Takes its process with it."""

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        os._exit(9)


@dataclass(frozen=True, kw_only=True)
class BriefAutoAttack(AutoAttack):
    """With a tenth of the steps, and fewer classes."""

    def members(self) -> tuple[Attack, ...]:
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
