"""Trains a defense or a part of one, and writes its weights with their card."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from rich.console import Console

from manifold_bench.bench.datasets.checks import check_dataset
from manifold_bench.bench.errors import interruption
from manifold_bench.bench.planning.matrix import ONE_CPU, Needs
from manifold_bench.bench.planning.plan import Plan
from manifold_bench.bench.planning.refs import TRAINING_SEED, DatasetRef, DefenseRef, TrainedRef
from manifold_bench.bench.records.log import Log
from manifold_bench.bench.records.provenance import code_revision, provenance
from manifold_bench.bench.running.board import Board, Work
from manifold_bench.bench.running.engines.calls import Call, Engine, Outcome
from manifold_bench.bench.running.failures import write_traceback
from manifold_bench.bench.running.locks import one_at_a_time, remove_drafts
from manifold_bench.bench.running.session import Session
from manifold_bench.bench.running.stamp import hash_of
from manifold_bench.defenses import weights
from manifold_bench.defenses.base import Defense, DefenseSpec, LabelledImages, Progress
from manifold_bench.defenses.checks import check_figures, check_readable, in_train_mode
from manifold_bench.defenses.errors import one_line, shortened, traceback_text
from manifold_bench.defenses.identity import parameters


@dataclass(frozen=True)
class Training:
    """The training of a defense, or of a part of one, on a data set.

    path: file for the weights. command: command line of this training, for the card. budget: share of the full
    training, in (0, 1]. title: name of the training on the screen and in the log. known: hash of the card at `path`
    when this was planned; "" if there was none.
    """

    ref: TrainedRef
    dataset: DatasetRef
    path: Path
    command: str = ""
    seed: int = TRAINING_SEED
    budget: float = 1.0
    device: str = "cpu"
    title: str = ""
    known: str = ""

    @property
    def work(self) -> dict[str, Work]:
        """The training as work for a board."""
        return {str(self.path): Work("training", self.title)}

    def reporter(self, log: Log) -> Callable[..., None]:
        """Return a function that writes events of this training, in this process, to a log."""
        return functools.partial(log.event, title=self.title, key=str(self.path), pid=os.getpid())


def train(training: Training, report: Callable[..., None] = lambda event, **fields: None) -> None:
    """Train, and write weights and card to `training.path`; checkpoints are in the same folder until the end.

    Parts have to be trained already. If another process runs the same training, this one waits, and uses its weights.
    report: function that gets the events of the training, as `Log.event`.
    """
    with one_at_a_time(training.path):
        if hash_of(weights.card_path(training.path)) in ("", training.known):
            remove_drafts(training.path.parent)
            _train(training, report)


def _train(training: Training, report: Callable[..., None]) -> None:
    class Reporting(Progress):
        checkpoints = training.path.with_suffix(".checkpoints")

        def epoch(self, stage: str, done: int, epochs: int, **figures: float) -> None:
            report("training epoch", stage=stage, epoch=done, epochs=epochs, figures=figures)

    report("training started")
    torch.set_num_threads(1)  # more threads sum in another order, so that the same seed would give other weights
    data = training.dataset.load()
    Reporting.checkpoints.mkdir(parents=True, exist_ok=True)
    ref = training.ref.with_trained_parts()
    module = ref.build()
    for name, part in ref.parts.items():
        part.fill(module.named_parts[name])
    module.to(training.device)
    check_dataset(data, "train", "validation")
    train, validation = (LabelledImages(s.images.clone(), s.labels.clone()) for s in (data.train, data.validation))
    figures = check_figures(module, "fit", module.fit(train, validation, training.budget, training.seed, Reporting()))
    notes = {"in train mode": layers} if (layers := in_train_mode(module)) else {}
    module = weights.freeze(module).cpu()
    if isinstance(module, Defense):
        fresh = ref.build()
        assert isinstance(fresh, Defense)
        check_readable(module, fresh, data.validation.images[:8])
    card = weights.Card(
        name=ref.system.name,
        source_sha256=ref.system.source_sha256,
        version=ref.cls.version,
        spec=weights.spec_json(ref.spec),
        data=data.zoo,
        revision=data.revision,
        seed=training.seed,
        budget=training.budget,
        command=training.command,
        code=code_revision(),
        torch=torch.__version__,
        figures={name: round(value, 6) for name, value in figures.items()},
        notes=notes,
        weights_sha256=weights.weights_hash(module),
        parts={name: weights.weights_hash(part) for name, part in module.named_parts.items()},
    )
    weights.save(module, card, training.path)
    shutil.rmtree(Reporting.checkpoints)


class Changes(TypedDict, total=False):
    """Fields of a `Training` that a command may set."""

    path: Path
    seed: int
    budget: float


def training_of(ref: DefenseRef, part: str, dataset: DatasetRef, device: str, **changes: Unpack[Changes]) -> Training:
    """Return the training of a defense, or of a part of it (`generator`; "": the defense), for the cache.

    changes: other values of the fields path, seed and budget.
    """
    own = ref.part(part)
    assert own.weights is not None
    title = f"{own.title_prefix}{ref.label} on {dataset.name}"
    training = dataclasses.replace(Training(own, dataset, own.weights, device=device, title=title), **changes)
    known = hash_of(weights.card_path(training.path))
    return dataclasses.replace(training, known=known, command=training_command(ref, part, training))


def training_command(ref: DefenseRef, part: str, training: Training) -> str:
    """Return the command line of a training of a defense, or of that part of it, without default values."""
    words = ["manifold-bench", "train", "--dataset", training.dataset.name, "--defense", ref.name]
    words += ["--part", part] if part else []
    of_the_data = {field.name for field in dataclasses.fields(DefenseSpec)}
    values = weights.spec_json(ref.spec)
    for name in parameters(ref.spec):
        if name not in of_the_data:
            words += ["--set", f"{name}={json.dumps(values[name])}"]
    words += ["--device", training.device] if training.device != "cpu" else []
    return shlex.join([*words, "--seed", str(training.seed), "--budget", f"{training.budget:g}"])


def train_with_parts(trainings: Sequence[Training], engine: Engine, console: Console, quiet: bool) -> bool:
    """Run trainings one after another, each in a separate process, and show them; return whether none failed.

    The last one is that of the defense, the others are those of its parts. After a failure no other one starts.
    """
    log = Log(trainings[-1].path.with_suffix(".log.jsonl"))
    log.event("run started", **provenance())
    failed = False
    with Board(console, 1, log, quiet) as board:
        for training in trainings:
            board.expect(training.work)
        for training in trainings:
            (outcome,) = engine.run([_call(training, log)])
            reason, trace = _ended(outcome)
            if trace:
                reason = f"{reason} (traceback: {log.path})"
                log.event("training traceback", title=training.title, key=str(training.path), lines=trace)
            board.done(str(training.path), reason, memory=outcome.memory)
            if failed := bool(reason):
                break
    log.event("run finished", jobs=len(trainings), failed=int(failed), skipped=0, memory=board.peak)
    return not failed


def train_missing(plan: Plan, session: Session) -> Plan:
    """Train everything that has no weights yet; return the plan with the new weights and the failures.

    Weights that several defenses share are trained once.
    """
    trainings: dict[Path, Training] = {}
    users: dict[Path, list[tuple[DatasetRef, DefenseRef]]] = {}
    for dataset, ref in plan.running:
        for part in ref.untrained:
            training = training_of(ref, part, dataset, plan.options.device)
            users.setdefault(training.path, []).append((dataset, ref))
            trainings.setdefault(training.path, training)
    for path, training in trainings.items():
        labels = ", ".join(ref.label for _, ref in users[path])
        trainings[path] = dataclasses.replace(
            training, title=f"{training.ref.title_prefix}{labels} on {training.dataset.name}"
        )
        session.board.expect(trainings[path].work)
    for training in trainings.values():
        session.board.line(f"training {training.title}: no weights in the zoo or the cache yet")
    untrainable: dict[tuple[str, str], str] = {}
    calls = []
    for training in trainings.values():
        resources = plan.matrix.resources_of(users[training.path][0][1].label)
        calls.append(_call(training, session.board.log, plan.matrix.needs(plan.options.device, *resources)))
    for outcome in session.run(calls):
        reason, trace = _ended(outcome)
        if trace:
            path = write_traceback(session.store.folder, f"training--{outcome.id.stem}", trace)
            reason = f"{reason} (traceback: {path.relative_to(session.folder)})"
        session.board.done(str(outcome.id), reason, memory=outcome.memory)
        if reason:
            for dataset, ref in users[outcome.id]:
                untrainable.setdefault((dataset.name, ref.label), f"training failed: {reason}")
    return plan.with_trained(untrainable) if trainings else plan


def _call(training: Training, log: Log, needs: Needs = ONE_CPU) -> Call:
    """Return the call that runs a training. needs: resources that it occupies."""
    ref = training.ref
    return Call(
        training.path,
        fit_job,
        (training, log),
        timeout=None,
        after=tuple(part.weights for name, part in ref.untrained.items() if name),
        reads=(*training.dataset.load().files, *weights.with_cards(ref.files)),
        writes=training.path.parent,
        log=log.path,
        needs=needs,
    )


def fit_job(training: Training, log: Log) -> list[str]:
    """Run a training in a worker process; return its exception on one line and as a traceback, or an empty list."""
    try:
        train(training, training.reporter(log))
    except interruption():
        raise  # as in `job.run_job`
    except BaseException as error:  # it is a user's code: it may raise what ends a process
        return [one_line(error), traceback_text()]
    return []


def _ended(outcome: Outcome) -> tuple[str | None, str]:
    """Return why a training failed, or None, and the traceback, or an empty text."""
    if outcome.failure:
        return outcome.failure, ""
    match outcome.result:
        case [str(reason), str(trace)]:
            return shortened(reason), trace
    return None, ""
