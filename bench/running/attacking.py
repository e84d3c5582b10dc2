"""The attack's side of a job. It runs in a process of its own, and hands over plain tensors and nothing else.

So whatever an attack does to its process or to the defense that it attacks, the judge is out of its reach: that one
works in another process, on an instance of the defense of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import batch_rows
from manifold_bench.attacks.target import Attacker, Target
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.records.log import LOG, Log
from manifold_bench.bench.running.engines.channel import Channel
from manifold_bench.bench.running.heartbeat import Heartbeat
from manifold_bench.bench.running.judge import Inputs, load_defense
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.weights import weights_hash


@dataclass(frozen=True)
class Found:
    """What an attack found for n inputs: outputs [n,C,H,W], and the passes that each of them cost [n]."""

    outputs: Tensor
    forwards: Tensor
    backwards: Tensor


class AttackProcess:
    """The judge's view of the process that attacks: `serve_attack` at the other end of the channel."""

    def __init__(self, channel: Channel, device: str) -> None:
        self._channel, self._device = channel, device

    def begin(self, inputs: Inputs) -> None:
        """Hand over the inputs, and wait until the attack is ready; raises PartnerFailed."""
        self._ask({}, vars(inputs))

    def attack(self, rows: Tensor, eps: float) -> Found:
        """Attack those rows [n] of the inputs within ε (∞ for a minimal attack); raises as `begin` does."""
        found = self._ask({"eps": eps}, {"rows": rows})
        return Found(found["outputs"].to(self._device), found["forwards"], found["backwards"])

    def end(self) -> None:
        """End the attack; raises PartnerFailed where it has changed the defense that it attacked."""
        self._ask({"end": True}, {})

    def _ask(self, words: dict[str, object], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        self._channel.send(words, tensors)
        return self._channel.receive()[1]


def serve_attack(job: Job, folder: Path, judge: Channel) -> None:
    """Attack what the judge asks for, until it says that this is the end."""
    _, given = judge.receive()
    torch.manual_seed(job.seed)
    np.random.seed(job.seed % 2**32)  # noqa: NPY002 - libraries draw from the global state
    attacking = Attacking(job, load_defense(job), Inputs(**given).to(job.device), Heartbeat(job, Log(folder / LOG)))
    judge.send({})
    while "end" not in (asked := judge.receive())[0]:
        found = attacking.attack(asked[1]["rows"].to(job.device), asked[0]["eps"])
        judge.send({}, vars(found))
    attacking.check_weights()
    judge.send({})


class Attacking:
    """A job's attack with the instance of the defense that it attacks."""

    def __init__(self, job: Job, defense: Defense, inputs: Inputs, heartbeat: Heartbeat) -> None:
        self.job, self.defense, self.inputs, self.heartbeat = job, defense, inputs, heartbeat

    def attack(self, rows: Tensor, eps: float) -> Found:
        """Attack those rows [n] of the inputs in batches."""
        job, attack = self.job, self.job.attack
        assert isinstance(attack, Attack)
        tried = self.inputs[rows]
        outputs = tried.x.clone()
        forwards = torch.zeros(len(rows), dtype=torch.float64)
        backwards = torch.zeros_like(forwards)
        self.heartbeat.begin(eps, len(rows))
        for part in torch.arange(len(rows), device=rows.device).split(batch_rows(tried.x)):
            batch = tried[part]
            attacker = Attacker(
                aims=None if attack.aims == "none" else batch.aims,
                held_out=self._held_out,
                source=partial(job.source.load, job.device) if job.source else None,
                max_forwards=attack.max_forwards,
            )
            target = Target(self.defense, len(batch), attacker, self.heartbeat.beat)
            found = attack.run(target, batch.x.clone(), batch.y.clone(), eps, job.seed)
            if not isinstance(found, Tensor):
                raise TypeError(f"the attack returned {type(found).__name__}, not a tensor of images")
            if found.shape != batch.x.shape:
                raise ValueError(f"the attack returned shape {tuple(found.shape)} for inputs {tuple(batch.x.shape)}")
            outputs[part] = found.detach().to(outputs)
            forwards[part.cpu()], backwards[part.cpu()] = target.forwards, target.backwards
            self.heartbeat.end_batch(target)
        return Found(outputs, forwards, backwards)

    def check_weights(self) -> None:
        """Raises RuntimeError where the attack has changed what it attacked: it has attacked another defense."""
        if weights_hash(self.defense) != self.job.defense.weights_sha256:
            raise RuntimeError("the attack changed the defense's weights or buffers: its answers count for nothing")

    def _held_out(self) -> tuple[Tensor, Tensor]:
        """The attacker's own images and labels: the validation split."""
        data = self.job.dataset.load().validation
        return data.images.to(self.job.device), data.labels.to(self.job.device)
