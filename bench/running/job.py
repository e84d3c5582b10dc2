"""Runs one job: load the defense, attack, judge, and store the records."""

from __future__ import annotations

import hashlib
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from manifold_bench.bench.datasets.base import Dataset, image_hashes
from manifold_bench.bench.errors import interruption
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.refs import DatasetRef
from manifold_bench.bench.planning.usercode import settings_kept
from manifold_bench.bench.records.images import AdversarialImages, path_of
from manifold_bench.bench.records.log import LOG, Log
from manifold_bench.bench.records.schema import ANSWERS, CALIBRATION, DISTANCES, UNSTEADY, protocol
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.attacking import AttackProcess, serve_attack
from manifold_bench.bench.running.attempt import Attempt, AttemptAtSize, Effort
from manifold_bench.bench.running.engines.calls import Call, Function
from manifold_bench.bench.running.engines.channel import Channel, PartnerFailed
from manifold_bench.bench.running.failures import write_traceback
from manifold_bench.bench.running.judge import (
    Inputs,
    Judge,
    ScoredVerdict,
    WorstVerdict,
    answer_columns,
    first_answers,
    load_defense,
    unperturbed,
    verdict,
)
from manifold_bench.bench.running.kernels import LayerCheck, kernels
from manifold_bench.bench.running.remarks import OutputCheck, remarks
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.checks import perceived
from manifold_bench.defenses.errors import one_line

SHOWN = (3, 8)
"""Number of inputs of each cell whose images are kept, for large and for small images (`SHOWN_BYTES`)."""

SHOWN_BYTES = 2**20
"""Limit in bytes for the kept images of a cell, above the smaller number: 8 of 64×64 pixels, 3 of 224×224."""


def run_job(job: Job, folder: Path, attacker: Channel | None = None) -> str:
    """Run a job and store its records; return "ok" or "failed". An exception becomes the reason of the failed cell.

    attacker: channel to `attacking.serve_attack` in the process that runs the attack; None for a clean pass.
    """
    store = Store(folder)
    Log(folder / LOG).event("job started", title=job.title, key=job.key, pid=os.getpid())
    try:
        with settings_kept(), torch.random.fork_rng():
            torch.manual_seed(job.seed)
            np.random.seed(job.seed % 2**32)  # noqa: NPY002 - libraries draw from the global state
            if attacker is None:
                rows, uneven = clean_records(job)
            else:
                rows, uneven = attack_records(job, store, AttackProcess(attacker, job.device)), []
    except interruption():
        raise  # in the command's own process the user wants it to end; elsewhere it is what the call raised
    except BaseException as error:  # it is a user's code: it may raise what ends a process
        reason, trace = (str(error), error.traceback) if isinstance(error, PartnerFailed) else (one_line(error), "")
        store.write(job, empty_records(job, "failed", reason))
        write_traceback(store.folder, store.path(job).stem, trace)
        return "failed"
    store.write(job, rows, kernels(job.device) | {"uneven": uneven})
    return "ok"


def job_call(job: Job, folder: Path, timeout: float | None = None) -> Call:
    """Return the call that runs a job and stores its records in a run's folder, with the attack as its partner."""
    return Call(
        job.key,
        run_job,
        (job.for_judge, folder),
        timeout,
        after=(job.clean_key,),
        partner=(serve_attack, (job, folder)) if job.attack else None,
        prepare=preparation(job.dataset),
        reads=job.reads,
        writes=folder,
        log=folder / LOG,
        needs=job.needs,
    )


def preparation(dataset: DatasetRef) -> Function | None:
    """Return a function that loads a data set once for many jobs; None for a user's data set."""
    own = type(dataset.load()).__module__.startswith("manifold_bench.")
    return (load_splits, (dataset,)) if own else None


def load_splits(dataset: DatasetRef) -> None:
    """Load the splits of a data set that jobs read."""
    data = dataset.load()
    _ = data.test, data.validation


def inputs(job: Job) -> Inputs:
    """Return the job's inputs, on the CPU."""
    x, y = _images_of(job.dataset, job.split, job.indices, job.seed)
    classes = torch.arange(job.dataset.load().num_classes).expand(len(x), -1)
    aims = job.attack.aims if job.attack else "none"
    if aims == "none":
        return Inputs(x, y, torch.full_like(y, -1), torch.arange(len(x)))
    wanted = classes != y[:, None] if aims == "wrong" else torch.ones_like(classes, dtype=torch.bool)
    number = wanted.nonzero()[:, 0]
    return Inputs(x[number], y[number], classes[wanted], number)


def _images_of(dataset: DatasetRef, split: str, indices: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Return images [N,C,H,W] and labels [N] of a split, by their indices."""
    data = dataset.load()
    if split == "noise":
        return noise(data.shape, indices, seed), torch.full((len(indices),), -1)
    images = data.validation if split == "validation" else data.test
    index = torch.tensor(indices, device="cpu")  # a model that ran in this process may have set another default
    return images.images[index], images.labels[index]


def noise(shape: tuple[int, int, int], numbers: tuple[int, ...], seed: int) -> Tensor:
    """Return uniform noise images [N,C,H,W]; each depends on its number and the seed alone."""
    drawn = []
    for number in numbers:
        own = int.from_bytes(hashlib.blake2b(f"{seed}|{number}".encode(), digest_size=7).digest())
        drawn.append(torch.rand(shape, generator=torch.Generator().manual_seed(own), device="cpu"))
    return torch.stack(drawn)


def clean_records(job: Job) -> tuple[pd.DataFrame, list[str]]:
    """Return the answers to clean inputs, one row each, and the defense's uneven layers (`kernels.LayerCheck`)."""
    rows = inputs(job).to(job.device)
    defense = load_defense(job, rows.x)
    begun = time.perf_counter()
    with LayerCheck(defense, rows.x) as layers, OutputCheck(defense) as outputs:
        answer = verdict(defense, rows.x, rows.y, job.draws, job.seed)
    seconds = time.perf_counter() - begun
    state = unperturbed(rows, answer)
    effort = Effort.none(len(rows))
    effort.forwards.add_(job.draws if defense.randomized else 1)
    results = AttemptAtSize(0.0, rows.x, state, torch.where(state.success, 0.0, torch.inf), effort, seconds)
    frame = _frame(job, rows, answer, results)
    uneven = layers.uneven()
    if job.kind == CALIBRATION:
        return frame, uneven
    note = "; ".join(remarks(job, rows, answer, outputs, bool(uneven)))
    return frame.assign(reason=note, **_pictures(job, defense, rows.x, rows.x)), uneven


def attack_records(job: Job, store: Store, attacker: AttackProcess) -> pd.DataFrame:
    """Return the rows of every ε. The judge has its own instance of the defense, which the attack cannot touch."""
    rows = inputs(job).to(job.device)
    attacker.begin(rows)
    defense = load_defense(job, rows.x)
    assert job.attack is not None
    judge = Judge(defense, job.attack.norm, job.draws, job.seed)
    attempt = Attempt(job, attacker, judge, rows, _clean_verdict(job, defense, rows, store))
    frames, distance = [], torch.empty(0)
    for results in attempt.at_each_size():
        frame = _frame(job, rows, attempt.clean, results)
        frames.append(frame.assign(**_pictures(job, defense, rows.x, results.outputs)))
        if job.keeps_images:
            _keep_images(job, store.folder.parent, frame, rows, results)
        distance = results.distance
    attacked = attacker.end()
    note = "" if defense.randomized else _changed(attempt.clean, first_answers(defense, rows.x), attacked)
    smallest = distance.cpu().numpy()  # known at the last ε, and the same in the rows of every one
    return pd.concat([frame.assign(distance=smallest, reason=note) for frame in frames], ignore_index=True)


def _changed(clean: WorstVerdict, judges: Tensor, attacked: Tensor) -> str:
    """Return a remark if a defense answers clean images otherwise than before the attack, since it keeps some state.

    One other answer may be rounding. judges, attacked: `first_answers` of the judge's instance and of the attack's one,
    which the attack itself may have changed, so that it says nothing of the defense.
    """
    before = torch.stack([clean.labels, clean.rejected.long()], 1).double().cpu()

    def others(now: Tensor) -> bool:
        return now.shape != before[: len(now)].shape or int((now != before[: len(now)]).any(1).sum()) > (len(now) > 1)

    if others(judges):
        return f"{UNSTEADY}to clean images changed during the attack"
    if others(attacked):
        return "the copy that it attacked answers clean images otherwise than before, so that it may have looked astray"
    return ""


def _clean_verdict(job: Job, defense: Defense, rows: Inputs, store: Store) -> WorstVerdict:
    """Return the answers in the records of the clean pass; for noise, which it does not have, compute them."""
    if job.split == "noise":
        return verdict(defense, rows.x, rows.y, job.draws, job.seed, rows.aims)
    pattern = f"*--{job.clean_key[:16]}.parquet"
    paths = list(store.folder.glob(pattern))
    if not paths:
        raise RuntimeError("the clean pass of this defense has no records")
    stored, _ = store.read(paths[0])
    if (stored["status"] != "ok").any() or list(stored["sample"])[: job.n] != list(job.indices):
        raise RuntimeError(f"the clean pass of this defense failed: {stored['reason'].iloc[0]}")

    def column(*names: str) -> Tensor:
        return torch.tensor(stored[[*names]].to_numpy(), device=job.device)[rows.number]

    clean = ScoredVerdict(*(column(name)[:, 0] for name in ("clean_label", "clean_rejected", "clean_score")))
    answers = column(*ANSWERS) if job.defense.cls.randomized else answer_columns([clean], rows.y)
    return WorstVerdict(clean.labels, clean.rejected, clean.scores, answers=answers)


def _frame(job: Job, rows: Inputs, clean: WorstVerdict, results: AttemptAtSize) -> pd.DataFrame:
    """Return the rows of a job at one ε, without images."""

    def column(values: Tensor) -> np.ndarray:
        return values.detach().cpu().numpy()

    state = results.judgement
    answers = dict(zip(ANSWERS, column(state.answers).T, strict=True)) if job.defense.cls.randomized else {}
    return _skeleton(job, rows, results.eps).assign(
        clean_label=column(clean.labels),
        clean_rejected=column(clean.rejected),
        clean_score=column(clean.scores),
        adv_label=column(state.labels),
        adv_rejected=column(state.rejected),
        adv_score=column(state.scores),
        linf=column(state.linf),
        l2=column(state.l2),
        l1=column(state.l1),
        l0=column(state.l0),
        distance=column(results.distance),
        valid=column(state.valid),
        success=column(state.success),
        **{name: column(values) for name, values in vars(results.effort).items()},
        **answers,
        seconds=results.seconds / max(len(rows), 1),
        status="ok",
        reason="",
    )


def _skeleton(job: Job, rows: Inputs, eps: float) -> pd.DataFrame:
    """Return the columns that are known before anything has run."""
    hashes = _hashes(type(job.dataset.load()), job.dataset, job.split, job.indices, job.seed)
    numbers = rows.number.tolist()
    return pd.DataFrame(
        {
            "dataset": job.dataset.name,
            "split": job.split,
            "sample": [job.indices[number] for number in numbers],
            "input_sha256": [hashes[number] for number in numbers],
            "label": rows.y.cpu().numpy(),
            "kind": job.kind,
            "aim": rows.aims.cpu().numpy(),
            "defense": job.defense.label,
            "attack": job.label,
            "norm": job.norm,
            "eps": eps,
            "seed": job.seed,
            "protocol": protocol(job.defense.cls.randomized, job.draws),
        }
    )


@lru_cache(maxsize=8)
def _hashes(cls: type[Dataset], dataset: DatasetRef, split: str, indices: tuple[int, ...], seed: int) -> list[str]:
    """Return the hashes of images. cls: class of the data set, since a program may hand in several under one name."""
    return image_hashes(_images_of(dataset, split, indices, seed)[0])


def changed_inputs(rows: pd.DataFrame, job: Job) -> str:
    """Return what the rows of a job say otherwise than this process about its inputs; empty where they agree.

    For example: images (3 of 4) and labels (1 of 4).
    """
    own, found = _skeleton(job, inputs(job), 0.0), []
    for words, column in {"images": "input_sha256", "labels": "label"}.items():
        here, there = (set(zip(one["sample"], one[column], strict=True)) for one in (own, rows))
        if here != there:
            found.append(f"{words} ({len(here - there)} of {len(here)})")
    return " and ".join(found)


def empty_records(job: Job, status: str, reason: str) -> pd.DataFrame:
    """Return the rows of a cell that failed or was skipped, with that status and reason."""
    nothing: dict[str, float | str] = {
        **dict.fromkeys(("clean_label", "adv_label"), 0),
        **dict.fromkeys((*DISTANCES, "forwards", "backwards", "seconds"), 0.0),
        **dict.fromkeys(("clean_score", "adv_score", "blind"), np.nan),
        **dict.fromkeys(("clean_rejected", "adv_rejected", "valid", "success", "unreturned"), False),
        **dict.fromkeys(("moved", "improved"), True),
        "distance": np.inf,
        "status": status,
        "reason": reason,
    }
    rows = inputs(job)
    return pd.concat([_skeleton(job, rows, eps).assign(**nothing) for eps in job.eps], ignore_index=True)


def _keep_images(job: Job, folder: Path, frame: pd.DataFrame, rows: Inputs, results: AttemptAtSize) -> None:
    """Store the judged image of each input at one ε; of several target classes the first success, or else the first.

    frame: the cell's rows, in the order of `rows`.
    """
    order = frame.assign(number=rows.number.cpu().numpy()).sort_values("success", ascending=False, kind="stable")
    chosen = order.drop_duplicates("number").sort_values("number").index.to_numpy()
    kept, first = frame.loc[chosen], frame.iloc[0]
    meta = {name: first[name] for name in ("dataset", "split", "defense", "attack", "norm")}
    path = path_of(folder, job.identity, results.eps)
    path.parent.mkdir(exist_ok=True)
    AdversarialImages(
        images=results.outputs.cpu().numpy()[chosen],
        labels=kept["label"].to_numpy(),
        indices=kept["sample"].to_numpy(),
        inputs=kept["input_sha256"].to_numpy(dtype=str),
        meta=meta | {"eps": results.eps, "seed": job.seed},
    ).save(path)


def _pictures(job: Job, defense: Defense, x: Tensor, adversarial: Tensor) -> dict[str, Any]:
    """Return the image columns (`schema.IMAGE_COLUMNS`), with images for the first few inputs alone.

    Of an input with several target classes one row has images: that of the next class for each next input.
    """
    least, most = SHOWN
    count = min(job.n, max(least, min(most, SHOWN_BYTES // x[0].nbytes)))
    shown = [job.aims * number + number % job.aims for number in range(count)]
    attacked = adversarial[shown].nan_to_num(0.0).clamp(0, 1)
    images = {"image_original": x[shown], "image_adversarial": attacked, "image_seen": perceived(defense, attacked)}
    columns = {}
    for name, few in images.items():
        column: list[bytes | None] = [None] * len(x)
        for row, image in zip(shown, few, strict=True):
            column[row] = _levels(image) if name == "image_seen" else image.cpu().numpy().tobytes()
        columns[name] = column
    return columns


def _levels(image: Tensor) -> bytes:
    return (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy().tobytes()
