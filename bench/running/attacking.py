"""The attack's side of a job, which runs in a separate process and sends plain tensors alone.

So an attack cannot reach the judge, whatever it does to its process or to the defense that it attacks: the judge works
in another process, on another instance of the defense.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import batch_rows
from manifold_bench.attacks.contract import Part
from manifold_bench.attacks.outputs import Scored
from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.target import Attacker, BudgetSpent, Target
from manifold_bench.attacks.threat import to_levels
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.records.log import LOG, Log
from manifold_bench.bench.running.engines.channel import Channel, PartnerFailed
from manifold_bench.bench.running.heartbeat import Heartbeat
from manifold_bench.bench.running.judge import Inputs, first_answers, load_defense
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.errors import shortened
from manifold_bench.defenses.weights import weights_hash


@dataclass(frozen=True)
class Found:
    """The results of an attack on n inputs, and its effort for each of them.

    outputs: images that the attack returned, [n,C,H,W]. met, met_distance: the image with the smallest perturbation of
    all queries that were successes, [n,C,H,W], and its size [n], ∞ if no query was. forwards, backwards: numbers of
    passes, [n]. blind, moved, improved: see `attempt.Effort`, [n].
    """

    outputs: Tensor
    met: Tensor
    met_distance: Tensor
    forwards: Tensor
    backwards: Tensor
    blind: Tensor
    moved: Tensor
    improved: Tensor


IMAGES = ("outputs", "met")

FOUND = {
    **dict.fromkeys(IMAGES, torch.float32),
    **dict.fromkeys(("met_distance", "forwards", "backwards", "blind"), torch.float64),
    **dict.fromkeys(("moved", "improved"), torch.bool),
}
"""The type of each field of `Found`."""


class AttackProcess:
    """The judge's access to the process that attacks; `serve_attack` is at the other end of the channel."""

    def __init__(self, channel: Channel, device: str) -> None:
        self._channel, self._device = channel, device
        self._shape: tuple[int, ...] = ()

    def begin(self, inputs: Inputs) -> None:
        """Send the inputs, and wait until the attack is ready; raises PartnerFailed."""
        self._shape = inputs.x.shape[1:]
        self._ask({}, vars(inputs))

    def attack(self, rows: Tensor, eps: float, levels: int | None = None) -> Found:
        """Attack those rows [n] of the inputs within ε (∞ for a minimal attack); raises PartnerFailed.

        levels: number of grey levels to which all images are rounded before the attacked defense sees them; None: none.
        """
        found = self._ask({"eps": eps, "levels": levels}, {"rows": rows})
        types = {name: (one.dtype, list(one.shape)) for name, one in found.items()}
        n = len(rows)
        expected = {name: (dtype, [n, *(self._shape if name in IMAGES else ())]) for name, dtype in FOUND.items()}
        if types != expected:
            raise PartnerFailed(shortened(f"its attack answered with {types}; expected {expected}"))
        moved = (*IMAGES, "met_distance")
        return Found(**{name: one.to(self._device) if name in moved else one for name, one in found.items()})

    def end(self) -> Tensor:
        """End the attack, and return the `first_answers` that the attacked defense gives now; none if it is randomized.

        Raises PartnerFailed if the attack changed the defense's weights.
        """
        return self._ask({"end": True}, {}).get("answers", torch.empty(0))

    def _ask(self, words: dict[str, object], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        self._channel.send(words, tensors)
        return self._channel.receive()[1]


def serve_attack(job: Job, folder: Path, judge: Channel) -> None:
    """Attack the rows that the judge sends, until the judge ends the attack."""
    _, given = judge.receive()
    torch.manual_seed(job.seed)
    np.random.seed(job.seed % 2**32)  # noqa: NPY002 - libraries draw from the global state
    rows = Inputs(**given).to(job.device)
    attacking = Attacking(job, load_defense(job, rows.x), rows, Heartbeat(job, Log(folder / LOG)))
    judge.send({})
    while "end" not in (request := judge.receive())[0]:
        with attacking.rounding(request[0]["levels"]):
            found = attacking.attack(request[1]["rows"].to(job.device), request[0]["eps"])
        judge.send({}, vars(found))
    attacking.check_weights()
    defense, x = attacking.defense, attacking.inputs.x
    judge.send({}, {} if defense.randomized else {"answers": first_answers(defense, x)})


class Attacking:
    """A job's attack, with the instance of the defense that it attacks."""

    def __init__(self, job: Job, defense: Defense, inputs: Inputs, heartbeat: Heartbeat) -> None:
        self.job, self.defense, self.inputs, self.heartbeat = job, defense, inputs, heartbeat
        self.outputs: dict[Part, Scored] = {}

    @contextmanager
    def rounding(self, levels: int | None) -> Iterator[None]:
        """Let the defense see images rounded to that number of grey levels, with the gradient of the images."""
        hook = None
        if levels is not None:
            hook = self.defense.register_forward_pre_hook(lambda _, given: (to_levels(given[0], levels), *given[1:]))
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()

    def attack(self, rows: Tensor, eps: float) -> Found:
        """Attack those rows [n] of the inputs in batches."""
        job, attack = self.job, self.job.attack
        assert isinstance(attack, Attack)
        tried = self.inputs[rows]
        self.heartbeat.begin(eps, len(rows))
        parts = []
        for part in torch.arange(len(rows), device=rows.device).split(batch_rows(tried.x)):
            batch = tried[part]
            attacker = Attacker(
                aims=None if attack.aims == "none" else batch.aims,
                held_out=self._held_out,
                source=partial(job.source.load, job.device) if job.source else None,
                max_passes=attack.max_passes,
                clean=self.inputs.x,
                outputs=self.outputs,
            )
            queries = Queries(batch.x, batch.y, batch.aims, attack.norm, eps)
            target = Target(self.defense, len(batch), attacker, self.heartbeat.beat, queries)
            try:
                found = attack.run(target, batch.x.clone(), batch.y.clone(), eps, job.seed)
            except BudgetSpent:
                found = queries.point
            if not isinstance(found, Tensor):
                raise TypeError(f"the attack returned {type(found).__name__}, not a tensor of images")
            if found.shape != batch.x.shape:
                expected = tuple(batch.x.shape)
                raise ValueError(f"the attack returned shape {tuple(found.shape)}; expected {expected}, as its inputs")
            spent = target.spent.to(batch.x.device)[:, None, None, None]
            outputs = torch.where(spent, queries.point, found.detach().to(batch.x))
            parts.append(
                Found(
                    outputs,
                    met=queries.point,
                    met_distance=queries.distance,
                    forwards=target.forwards,
                    backwards=target.backwards,
                    blind=(queries.blind / queries.gradients).cpu(),  # 0 / 0 is NaN
                    moved=(queries.moved | (outputs != batch.x).flatten(1).any(1)).cpu(),
                    improved=queries.improved.cpu(),
                )
            )
            self.heartbeat.end_batch(target)
        return Found(*(torch.cat(columns) for columns in zip(*(vars(part).values() for part in parts), strict=True)))

    def check_weights(self) -> None:
        """Raise RuntimeError if the attack changed the weights of the defense that it attacked."""
        if weights_hash(self.defense) != self.job.defense.weights_sha256:
            raise RuntimeError(
                "the attack changed the defense's weights or buffers, or each process draws or trains them anew; its "
                "outputs do not count. Give a model of a file with saved weights, as file.py:Net@weights.pt"
            )

    def _held_out(self) -> tuple[Tensor, Tensor]:
        """Return the attacker's own images and labels: a copy of the validation split."""
        data = self.job.dataset.load().validation
        return data.images.to(self.job.device, copy=True), data.labels.to(self.job.device, copy=True)
