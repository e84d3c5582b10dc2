"""One job, wherever it runs: load the defense, attack, judge, store the records."""

from __future__ import annotations

import hashlib
import os
import time
import traceback
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from manifold_bench.attacks.base import Attack
from manifold_bench.attacks.batching import batch_rows
from manifold_bench.attacks.target import Attacker, Notes, Target
from manifold_bench.attacks.threat import expand, within
from manifold_bench.bench.datasets.base import image_hashes
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.refs import DatasetRef
from manifold_bench.bench.records.log import LOG, Log
from manifold_bench.bench.records.schema import CALIBRATION, protocol
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.heartbeat import Pace
from manifold_bench.bench.running.judge import Judgement, ScoredVerdict, batch_invariant, judge, succeeded, verdict
from manifold_bench.bench.running.kernels import LayerCheck, kernels
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.weights import weights_hash

SHOWN = 8
"""Inputs of each cell whose images are kept, for the image grid."""


def _loaded(job: Job) -> Defense:
    """The job's defense, fresh: what another job may have done to it is gone."""
    defense = job.defense.load(job.device)
    defense.register_forward_hook(_must_answer)
    return defense


def _must_answer(defense: Defense, arguments: tuple[Tensor, ...], logits: Tensor) -> None:
    """Raises ValueError for outputs that are no answer: NaN has an argmax too, and would pass for one."""
    x = arguments[0]
    expected = (len(x), defense.num_classes + int(defense.rejects))
    if tuple(logits.shape) != expected:
        raise ValueError(
            f"the defense returned shape {tuple(logits.shape)}, not {expected}: one output per class"
            f"{' and the reject score' if defense.rejects else ''}"
        )
    if logits.isnan().any() and not x.isnan().any():
        raise ValueError("the defense returned NaN for an image")


def run_job(job: Job, folder: Path) -> str:
    """Runs a job and stores its records; returns ok or failed. What it raises becomes the failed cell's reason."""
    store = Store(folder)
    log = Log(folder / LOG)
    log.event("job started", title=job.title, key=job.key, pid=os.getpid())
    try:
        with torch.random.fork_rng():
            torch.manual_seed(job.seed)
            np.random.seed(job.seed % 2**32)  # noqa: NPY002 - libraries draw from the global state
            if job.attack is None:
                rows, uneven = clean_records(job)
            else:
                rows, uneven = attack_records(job, job.attack, store, log), []
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        store.write(job, empty_records(job, "failed", reason))
        traces = store.folder / "failures"
        traces.mkdir(exist_ok=True)
        (traces / f"{store.path(job).stem}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return "failed"
    store.write(job, rows, kernels(job.device) | {"uneven": uneven})
    return "ok"


@dataclass(frozen=True)
class Inputs:
    """What a job attacks: a row for each of its inputs and each class that the input is to be taken for.

    x: images [N,C,H,W]; y: labels [N], −1 for noise; aims: classes [N], −1 where the attack is free to choose;
    number: [N], which of the job's inputs a row is, ascending.
    """

    x: Tensor
    y: Tensor
    aims: Tensor
    number: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Tensor) -> Inputs:
        return Inputs(self.x[rows], self.y[rows], self.aims[rows], self.number[rows])

    def to(self, device: str) -> Inputs:
        return Inputs(self.x.to(device), self.y.to(device), self.aims.to(device), self.number.to(device))


def inputs(job: Job) -> Inputs:
    """The job's rows, on the CPU."""
    x, y = _images_of(job.dataset, job.split, job.indices, job.seed)
    asked = torch.arange(job.dataset.load().num_classes).expand(len(x), -1)
    aims = job.attack.aims if job.attack else "none"
    if aims == "none":
        return Inputs(x, y, torch.full_like(y, -1), torch.arange(len(x)))
    wanted = asked != y[:, None] if aims == "wrong" else torch.ones_like(asked, dtype=torch.bool)
    number = wanted.nonzero()[:, 0]
    return Inputs(x[number], y[number], asked[wanted], number)


def _images_of(dataset: DatasetRef, split: str, indices: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Images [N,C,H,W] and labels [N] of a split, by their indices there."""
    data = dataset.load()
    if split == "noise":
        return noise(data.shape, indices, seed), torch.full((len(indices),), -1)
    images = data.validation if split == "validation" else data.test
    index = torch.tensor(indices)
    return images.images[index], images.labels[index]


def noise(shape: tuple[int, int, int], numbers: tuple[int, ...], seed: int) -> Tensor:
    """Uniform noise images [N,C,H,W] by their numbers; each depends on its own number and the seed alone."""
    drawn = []
    for number in numbers:
        own = int.from_bytes(hashlib.blake2b(f"{seed}|{number}".encode(), digest_size=7).digest())
        drawn.append(torch.rand(shape, generator=torch.Generator().manual_seed(own)))
    return torch.stack(drawn)


def clean_records(job: Job) -> tuple[pd.DataFrame, list[str]]:
    """The answers to the unperturbed inputs, one row each, and the defense's uneven layers (`kernels.LayerCheck`)."""
    rows = inputs(job).to(job.device)
    defense = _loaded(job)
    begun = time.perf_counter()
    with LayerCheck(defense, rows.x) as layers:
        answer = verdict(defense, rows.x, rows.y, job.draws, job.seed)
    seconds = time.perf_counter() - begun
    state = _untouched(rows, answer)
    zeros = torch.zeros(len(rows))
    frame = _frame(
        job, 0.0, rows, answer, state, distance=torch.where(state.success, 0.0, torch.inf),
        forwards=zeros + (job.draws if defense.randomized else 1), backwards=zeros, seconds=seconds,
    )  # fmt: skip
    uneven = layers.uneven()
    if job.kind == CALIBRATION:
        return frame, uneven
    note = "" if defense.randomized or batch_invariant(defense, rows.x) else "its answers depend on the batch"
    if note and uneven:
        note += ", perhaps by rounding alone: this machine's kernels round by the size of the batch"
    return frame.assign(reason=note, **_pictures(job, defense, rows.x, rows.x)), uneven


def attack_records(job: Job, attack: Attack, store: Store, log: Log) -> pd.DataFrame:
    """The rows of every ε; how far the attack is goes to the log now and then."""
    rows = inputs(job).to(job.device)
    defense = _loaded(job)
    clean = _clean_verdict(job, defense, rows, store)
    cells = _minimal if attack.minimal else _fixed
    frames = cells(job, attack, defense, rows, clean, Pace(job, attack, len(rows), log))
    if weights_hash(defense) != job.defense.weights_sha256:
        raise RuntimeError("the attack changed the defense's weights or buffers: its answers count for nothing")
    return pd.concat(frames, ignore_index=True)


def _clean_verdict(job: Job, defense: Defense, rows: Inputs, store: Store) -> ScoredVerdict:
    """From the records of the clean pass, asked once per defense and not per cell; noise is in none and asked here."""
    if job.split == "noise":
        return verdict(defense, rows.x, rows.y, job.draws, job.seed, rows.aims)
    pattern = f"*--{job.clean_key[:16]}.parquet"
    paths = list(store.folder.glob(pattern))
    if not paths:
        raise RuntimeError("the clean pass of this defense left no records")
    stored, _ = store.read(paths[0])
    if (stored["status"] != "ok").any() or list(stored["sample"])[: job.n] != list(job.indices):
        raise RuntimeError(f"the clean pass of this defense failed: {stored['reason'].iloc[0]}")
    columns = ("clean_label", "clean_rejected", "clean_score")
    return ScoredVerdict(*(torch.tensor(stored[name].to_numpy(), device=job.device)[rows.number] for name in columns))


def _fixed(
    job: Job, attack: Attack, defense: Defense, rows: Inputs, clean: ScoredVerdict, pace: Pace
) -> list[pd.DataFrame]:
    """What is beaten at a smaller ε stays beaten, larger ones attack the rest; without a ladder each ε attacks all."""
    adversarial = rows.x.clone()
    state = _untouched(rows, clean)
    distance = torch.where(state.success, 0.0, torch.inf)
    notes = Notes(len(rows))
    frames = []
    for eps in job.eps:
        begun = time.perf_counter()
        active = (~state.success if job.ladder else torch.ones_like(state.success)).nonzero()[:, 0]
        known = notes if job.ladder else Notes(len(rows))
        outputs, forwards, backwards, fresh = _attacked(job, attack, defense, rows, clean, active, eps, pace, known)
        adversarial[active] = outputs
        state = _merge(state, active, fresh)
        size = _size(state, attack.norm)
        distance = torch.where(state.success, torch.minimum(distance, size), distance)
        seconds = time.perf_counter() - begun
        frame = _frame(job, eps, rows, clean, state, distance, forwards, backwards, seconds)
        frames.append(frame.assign(**_pictures(job, defense, rows.x, adversarial)))
    final = distance.cpu().numpy()
    return [frame.assign(distance=final) for frame in frames]


def _minimal(
    job: Job, attack: Attack, defense: Defense, rows: Inputs, clean: ScoredVerdict, pace: Pace
) -> list[pd.DataFrame]:
    """One run; at each ε the inputs whose perturbation is no larger count as beaten, the others stand as they were.

    The passes are those of the run: they are recorded at the smallest ε and nowhere else.
    """
    begun = time.perf_counter()
    untouched = _untouched(rows, clean)
    active = (~untouched.success).nonzero()[:, 0]
    outputs, forwards, backwards, fresh = _attacked(
        job, attack, defense, rows, clean, active, float("inf"), pace, Notes(len(rows))
    )
    adversarial = rows.x.clone()
    adversarial[active] = outputs
    found = _merge(untouched, active, fresh)
    size = _size(found, attack.norm)
    distance = torch.where(found.success, size, torch.inf)
    seconds = time.perf_counter() - begun
    frames = []
    for number, eps in enumerate(job.eps):
        reached = found.success & within(size, attack.norm, eps)
        kept = reached | ~found.valid
        state = Judgement(
            *(torch.where(kept, a, b) for a, b in zip(vars(found).values(), vars(untouched).values(), strict=True))
        )
        shown = torch.where(expand(reached, adversarial), adversarial, rows.x)
        once = 1.0 if number == 0 else 0.0
        frame = _frame(job, eps, rows, clean, state, distance, forwards * once, backwards * once, seconds * once)
        frames.append(frame.assign(**_pictures(job, defense, rows.x, shown)))
    return frames


def _attacked(
    job: Job,
    attack: Attack,
    defense: Defense,
    rows: Inputs,
    clean: ScoredVerdict,
    active: Tensor,
    eps: float,
    pace: Pace,
    notes: Notes,
) -> tuple[Tensor, Tensor, Tensor, Judgement]:
    """Attacks the active rows in batches: outputs [A,C,H,W], passes of all rows [N] each, and judgement of the A.

    notes: what the attack noted of the rows at a smaller ε.
    """
    forwards, backwards = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    tried = rows[active]
    before = ScoredVerdict(clean.labels[active], clean.rejected[active], clean.scores[active])
    outputs = tried.x.clone()
    pace.strength(eps, len(active))
    if not len(active):  # all beaten at a smaller ε: networks need not take an empty batch
        return outputs, forwards, backwards, _untouched(tried, before)
    for part in torch.arange(len(active), device=active.device).split(batch_rows(tried.x)):
        batch = tried[part]
        attacker = Attacker(
            aims=None if attack.aims == "none" else batch.aims,
            held_out=lambda: _held_out(job),
            source=partial(job.source.load, job.device) if job.source else None,
            max_forwards=attack.max_forwards,
            notes=notes.only(active[part]),
        )
        target = Target(defense, len(batch), attacker, pace.tell)
        found = attack.run(target, batch.x.clone(), batch.y.clone(), eps, job.seed)
        if not isinstance(found, Tensor):
            raise TypeError(f"the attack returned {type(found).__name__}, not a tensor of images")
        if found.shape != batch.x.shape:
            raise ValueError(f"the attack returned shape {tuple(found.shape)} for inputs {tuple(batch.x.shape)}")
        outputs[part] = found.detach().to(outputs)
        forwards[active[part].cpu()], backwards[active[part].cpu()] = target.forwards, target.backwards
        pace.batch(target)
    fresh = judge(defense, tried.x, outputs, tried.y, before, attack.norm, eps, job.draws, job.seed, tried.aims)
    return outputs, forwards, backwards, fresh


def _held_out(job: Job) -> tuple[Tensor, Tensor]:
    """The attacker's own images and labels: the validation split."""
    data = job.dataset.load().validation
    return data.images.to(job.device), data.labels.to(job.device)


def _untouched(rows: Inputs, clean: ScoredVerdict) -> Judgement:
    """The clean inputs as the outputs of an attack: those that count as beaten already are so at distance 0."""
    zeros = torch.zeros(len(rows), dtype=torch.float64, device=rows.x.device)
    success = succeeded(clean, rows.y, rows.aims)
    every = torch.ones_like(success)
    return Judgement(clean.labels, clean.rejected, clean.scores, zeros, zeros, zeros, every, success)


def _merge(state: Judgement, rows: Tensor, fresh: Judgement) -> Judgement:
    """The state with fresh judgements at those rows."""
    merged = {}
    for name, old in vars(state).items():
        new = old.clone()
        new[rows] = getattr(fresh, name).to(old.dtype)
        merged[name] = new
    return Judgement(**merged)


def _size(state: Judgement, norm: str) -> Tensor:
    return {"linf": state.linf, "l0": state.l0}.get(norm, state.l2)


def _frame(
    job: Job,
    eps: float,
    rows: Inputs,
    clean: ScoredVerdict,
    state: Judgement,
    distance: Tensor,
    forwards: Tensor,
    backwards: Tensor,
    seconds: float,
) -> pd.DataFrame:
    def column(values: Tensor) -> np.ndarray:
        return values.detach().cpu().numpy()

    return _skeleton(job, rows, eps).assign(
        clean_label=column(clean.labels),
        clean_rejected=column(clean.rejected),
        clean_score=column(clean.scores),
        adv_label=column(state.labels),
        adv_rejected=column(state.rejected),
        adv_score=column(state.scores),
        linf=column(state.linf),
        l2=column(state.l2),
        l0=column(state.l0),
        distance=column(distance),
        valid=column(state.valid),
        success=column(state.success),
        forwards=column(forwards),
        backwards=column(backwards),
        seconds=seconds / max(len(rows), 1),
        status="ok",
        reason="",
    )


def _skeleton(job: Job, rows: Inputs, eps: float) -> pd.DataFrame:
    """What is known of every row before anything has run."""
    hashes = _hashes(job.dataset, job.split, job.indices, job.seed)
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
def _hashes(dataset: DatasetRef, split: str, indices: tuple[int, ...], seed: int) -> list[str]:
    return image_hashes(_images_of(dataset, split, indices, seed)[0])


def empty_records(job: Job, status: str, reason: str) -> pd.DataFrame:
    """The rows of a cell that did not run, or not to its end: they say so, and hold no figure."""
    nothing: dict[str, Any] = {
        "clean_label": 0, "clean_rejected": False, "clean_score": np.nan, "adv_label": 0, "adv_rejected": False,
        "adv_score": np.nan, "linf": 0.0, "l2": 0.0, "l0": 0.0, "distance": np.inf, "valid": False, "success": False,
        "forwards": 0.0, "backwards": 0.0, "seconds": 0.0, "status": status, "reason": reason,
    }  # fmt: skip
    rows = inputs(job)
    return pd.concat([_skeleton(job, rows, eps).assign(**nothing) for eps in job.eps], ignore_index=True)


def _pictures(job: Job, defense: Defense, x: Tensor, adversarial: Tensor) -> dict[str, Any]:
    """The image columns: pixels of the first few inputs, none of the others.

    Of an input that is to be taken for several classes one row is shown, of the next input that with the next class.
    """
    shown = [job.aims * number + number % job.aims for number in range(min(SHOWN, job.n))]
    attacked = adversarial[shown].nan_to_num(0.0).clamp(0, 1)
    images = {"image_original": x[shown], "image_adversarial": attacked, "image_seen": defense.perceived(attacked)}
    columns = {}
    for name, few in images.items():
        column: list[bytes | None] = [None] * len(x)
        for row, image in zip(shown, few, strict=True):
            column[row] = _pixels(image)
        columns[name] = column
    return columns


def _pixels(image: Tensor) -> bytes:
    return (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy().tobytes()
