"""Attacks on the MNIST classifiers of the zoo: ours through the whole harness, other libraries' on the same weights.

`tox -e benchmark`, or `pytest tests/benchmarks -m slow --benchmark-only --benchmark-json FILE.json --inputs 256` and
then `python tests/benchmarks/table.py FILE.json`. Contestants take turns, so that whatever else the machine does meets
all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers import (
    CW,
    Counted,
    Peer,
    art,
    bare_apgd,
    bare_carlini_wagner,
    bare_deepfool,
    bare_mim,
    bare_pgd,
    foolbox,
    missing,
    plain,
    torchattacks,
    torchattacks_autoattack,
)
from plans import planned
from torch import Tensor, nn

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.threat import Norm, flat_norm, inside
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.plan import Options
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.engines.local import LocalEngine
from manifold_bench.bench.running.job import job_call

pytestmark = pytest.mark.slow

ALL = 1024
"""Inputs that libraries get at once."""


@dataclass(frozen=True)
class Task:
    """An attack with its budget. ours: the entry of a matrix file; peers by name; eps for each defense.

    few: peers that would take minutes, with how many inputs they get; rounds: times that all take their turn.
    """

    ours: dict[str, Any]
    peers: dict[str, Peer]
    eps: dict[str, float]
    norm: Norm = "linf"
    few: dict[str, int] = field(default_factory=dict)
    rounds: int = 3
    lacks: tuple[str, ...] = field(default=())

    @property
    def minimal(self) -> bool:
        """Whether it looks for the smallest perturbation; robust accuracy is then measured at ε."""
        return self.norm == "l2"


LINF, L2 = {"undefended": 0.1, "pgd-training": 0.3}, {"undefended": 1.5, "pgd-training": 3.0}
QUERIES = 500

TASKS = {
    "PGD-40": Task(
        {"name": "manifold_bench.attacks.gradient:PGD", "steps": 40},
        {
            "bare loop": bare_pgd,
            "ART": art(
                "ProjectedGradientDescentPyTorch",
                eps=lambda e: e,
                eps_step=lambda e: e / 16,
                max_iter=40,
                num_random_init=1,
                batch_size=ALL,
                verbose=False,
            ),
            "Foolbox": foolbox("LinfPGD", abs_stepsize=lambda e: e / 16, steps=40),
            "torchattacks": torchattacks("PGD", eps=lambda e: e, alpha=lambda e: e / 16, steps=40),
        },
        LINF,
    ),
    "MIM-10": Task(
        {"name": "manifold_bench.attacks.gradient:MIM", "steps": 10},
        {
            "bare loop": bare_mim,
            "ART": art(
                "MomentumIterativeMethod",
                eps=lambda e: e,
                eps_step=lambda e: e / 10,
                decay=1.0,
                max_iter=10,
                batch_size=ALL,
                verbose=False,
            ),
            "Foolbox": foolbox("LinfMomentumIterativeFastGradientMethod", abs_stepsize=lambda e: e / 10, steps=10),
            "torchattacks": torchattacks("MIFGSM", eps=lambda e: e, alpha=lambda e: e / 10, steps=10, decay=1.0),
        },
        LINF,
    ),
    "APGD-CE-100": Task(
        {"name": "manifold_bench.attacks.apgd:APGD"},
        {
            "bare loop": bare_apgd,
            "ART": art(
                "AutoProjectedGradientDescent",
                eps=lambda e: e,
                eps_step=lambda e: 2 * e,
                max_iter=100,
                nb_random_init=1,
                batch_size=ALL,
                loss_type="cross_entropy",
                verbose=False,
            ),
            "torchattacks": torchattacks("APGD", norm="Linf", eps=lambda e: e, steps=100, n_restarts=1, loss="ce"),
        },
        LINF,
        lacks=("Foolbox",),
    ),
    "Carlini–Wagner L2, 5 × 100": Task(
        {"name": "manifold_bench.attacks.carlini_wagner:CarliniWagner", **CW},
        {
            "bare loop": bare_carlini_wagner,
            "ART": art(
                "CarliniL2Method",
                binary_search_steps=5,
                max_iter=100,
                learning_rate=0.05,
                initial_const=0.1,
                batch_size=ALL,
                verbose=False,
            ),
            "Foolbox": foolbox(
                "L2CarliniWagnerAttack",
                minimal=True,
                binary_search_steps=5,
                steps=100,
                stepsize=0.05,
                initial_const=0.1,
            ),
            "torchattacks": torchattacks("CW", c=10.0, steps=500, lr=0.05),  # it has no search
        },
        L2,
        "l2",
        few={"ART": 32},
        rounds=1,
    ),
    "DeepFool L2": Task(
        {"name": "manifold_bench.attacks.deepfool:DeepFool"},
        {
            "bare loop": bare_deepfool,
            "ART": art("DeepFool", max_iter=50, epsilon=0.02, nb_grads=10, batch_size=ALL, verbose=False),
            "Foolbox": foolbox("L2DeepFoolAttack", minimal=True, steps=50, candidates=10, overshoot=0.02),
            "torchattacks": torchattacks("DeepFool", steps=50, overshoot=0.02),
        },
        L2,
        "l2",
        rounds=1,
    ),
    f"Square, {QUERIES} queries": Task(
        {"name": "manifold_bench.attacks.square:Square", "queries": QUERIES},
        {
            "ART": art("SquareAttack", eps=lambda e: e, max_iter=QUERIES, p_init=0.8, batch_size=ALL, verbose=False),
            "torchattacks": torchattacks("Square", norm="Linf", eps=lambda e: e, n_queries=QUERIES, p_init=0.8),
        },
        LINF,
        rounds=1,
        lacks=("Foolbox",),
    ),
    "AutoAttack": Task(
        {"name": "manifold_bench.attacks.autoattack:AutoAttack"},
        {
            "ART": art("AutoAttack", eps=lambda e: e, eps_step=lambda e: 2 * e, batch_size=ALL),
            "torchattacks": torchattacks_autoattack,
        },
        LINF,
        few={"ART": 32},
        rounds=1,
        lacks=("Foolbox",),
    ),
}


class Harness:
    """Our side: a job of the harness, from loading the defense to its stored records; its clean pass is done before.

    It runs where jobs run: in a worker of the engine, which is there already.
    """

    def __init__(self, engine: LocalEngine, task: Task, defense: str, n: int, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        raw = {
            "datasets": [{"name": "mnist5k", "n": n}],
            "defenses": [defense],
            "attacks": [{**task.ours, "norm": task.norm, "eps": [task.eps[defense]]}],
        }
        clean, self.job = planned(parse_matrix(raw, "benchmark"), Options())
        assert clean.attack is None
        self._run(clean)
        self.defense = self.job.defense.load()
        index, test = torch.tensor(self.job.indices), self.job.dataset.load().test
        self.x, self.y = test.images[index], test.labels[index]

    def run(self) -> None:
        self._run(self.job)

    def _run(self, job: Job) -> None:
        (outcome,) = self.engine.run([job_call(job, self.folder)])
        assert outcome.result == "ok", outcome

    def outcome(self) -> dict[str, float]:
        """What the stored records say."""
        store = Store(self.folder)
        records, _ = store.read(store.path(self.job))
        return {
            "robust": 1 - float(records["success"].mean()),
            "distance": float(np.median(records["distance"])),
            "forwards": float(records["forwards"].mean()),
            "backwards": float(records["backwards"].mean()),
            "n": len(records),
        }

    def judged(self, found: Tensor, counted: Counted, task: Task, eps: float) -> dict[str, float]:
        """The same of another's outputs; what is invalid is no success."""
        found = found.detach().float()
        x, y = self.x[: len(found)], self.y[: len(found)]
        wrong = blockwise(self.defense, found.nan_to_num(0.0)).argmax(1) != y
        wrong |= blockwise(self.defense, x).argmax(1) != y
        size = flat_norm(found - x, task.norm)
        distance = torch.where(wrong & inside(found, x, task.norm, 1e9), size, torch.inf)
        within = wrong & inside(found, x, task.norm, eps * 1.0001)
        return {
            "robust": 1 - float(within.float().mean()),
            "distance": float(np.median(distance)),
            "forwards": counted.forwards / len(x),
            "backwards": counted.backwards / len(x),
            "n": len(x),
        }


def pass_seconds(module: nn.Module, x: Tensor) -> tuple[float, float]:
    """Of one input: a forward pass and a backward pass, alone and for the whole batch at once; medians."""
    alone, both = [], []
    for _ in range(9):
        begun = time.perf_counter()
        with torch.no_grad():
            module(x)
        alone.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        point = x.clone().requires_grad_(True)
        torch.autograd.grad(module(point).sum(), point)
        both.append(time.perf_counter() - begun)
    forward = statistics.median(alone)
    return forward / len(x), (statistics.median(both) - forward) / len(x)


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(workers=1) as started:
        yield started


@pytest.mark.parametrize("defense", ["undefended", "pgd-training"])
@pytest.mark.parametrize("name", TASKS)
def test_attack(benchmark, engine: LocalEngine, inputs: int, tmp_path: Path, name: str, defense: str):
    torch.set_num_threads(1)
    task, eps = TASKS[name], TASKS[name].eps[defense]
    ours = Harness(engine, task, defense, inputs, tmp_path)
    theirs = plain(ours.defense)
    there = {peer: run for peer, run in task.peers.items() if missing(peer, name) is None}
    seconds: dict[str, list[float]] = {peer: [] for peer in there}
    outcomes: dict[str, dict[str, float]] = {}

    def others() -> None:
        """Everyone else's turn, before each of ours."""
        for peer, run in there.items():
            torch.manual_seed(0)
            counted, n = Counted(theirs).eval(), task.few.get(peer, inputs)
            begun = time.perf_counter()
            found = run(counted, ours.x[:n].clone(), ours.y[:n].clone(), eps)
            seconds[peer].append(time.perf_counter() - begun)
            outcomes[peer] = ours.judged(found, counted, task, eps)

    benchmark.group = f"{name}, {defense}, n = {inputs}"
    benchmark.pedantic(ours.run, setup=others, rounds=task.rounds)
    took = statistics.median(benchmark.stats.stats.data) if benchmark.stats else float("nan")
    outcomes = {"ours": ours.outcome(), **outcomes}
    forward, backward = pass_seconds(ours.defense, ours.x)
    alone = inputs * (outcomes["ours"]["forwards"] * forward + outcomes["ours"]["backwards"] * backward)
    benchmark.extra_info["attack"] = {
        "name": name,
        "defense": defense,
        "n": inputs,
        "eps": eps,
        "norm": task.norm,
        "rounds": task.rounds,
        "minimal": task.minimal,
        "passes_alone": alone,
        "contestants": [
            {"name": peer, "seconds": took if peer == "ours" else statistics.median(seconds[peer]), **outcome}
            for peer, outcome in outcomes.items()
        ],
        "lacking": [
            *(f"{peer}: {reason}" for peer in task.peers if (reason := missing(peer, name))),
            *(f"{library} does not have this attack" for library in task.lacks),
        ],
    }
