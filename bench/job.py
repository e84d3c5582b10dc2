"""One job, wherever it runs: load the defense, attack, judge, store the records."""

from __future__ import annotations

import time
import traceback
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attacks.base import Attack
from attacks.target import Target, Verdict
from attacks.threat import expand
from bench.datasets.base import image_hashes
from bench.judge import BATCH, Judgement, batch_invariant, judge, protocol, verdict
from bench.plan import Job
from bench.records import typed
from bench.store import Store
from defenses.base import Defense
from defenses.weights import weights_hash

SHOWN = 8
"""Images kept of each cell, for the image grid."""

TOLERANCE = {"linf": 1e-6, "l2": 1e-5, "l0": 0.0, "unrestricted": 0.0}


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
    try:
        with torch.random.fork_rng():
            torch.manual_seed(job.seed)
            np.random.seed(job.seed % 2**32)  # noqa: NPY002 - libraries draw from the global state
            rows = clean_records(job) if job.attack is None else attack_records(job, job.attack, store)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        store.write(job, empty_records(job, "failed", reason))
        log = store.folder / "failures"
        log.mkdir(exist_ok=True)
        (log / f"{store.path(job).stem}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return "failed"
    store.write(job, rows)
    return "ok"


def inputs(job: Job) -> tuple[Tensor, Tensor]:
    """The job's images [N,C,H,W] and labels [N], on its device."""
    data = job.dataset.load().test
    index = torch.tensor(job.indices)
    return data.images[index].to(job.device), data.labels[index].to(job.device)


def clean_records(job: Job) -> pd.DataFrame:
    """The answers to the unperturbed inputs, one row each."""
    x, y = inputs(job)
    defense = _loaded(job)
    begun = time.perf_counter()
    answer = verdict(defense, x, y, job.draws, job.seed)
    seconds = time.perf_counter() - begun
    note = "" if defense.randomized or batch_invariant(defense, x) else "its answers depend on the batch"
    wrong = answer.wrong(y)
    zeros = torch.zeros(len(x))
    rows = _rows(
        job, 0.0, x, y, answer,
        Judgement(answer.labels, answer.rejected, zeros, zeros, zeros, torch.ones_like(wrong), wrong),
        distance=torch.where(wrong, 0.0, torch.inf), forwards=zeros + (job.draws if defense.randomized else 1),
        backwards=zeros, seconds=seconds,
    )  # fmt: skip
    return rows.assign(reason=note, **_images(job, defense, x, x))


def attack_records(job: Job, attack: Attack, store: Store) -> pd.DataFrame:
    """The whole ladder of ε: what is beaten at a smaller ε stays beaten, the larger ones attack the rest."""
    x, y = inputs(job)
    defense = _loaded(job)
    clean = _clean_verdict(job, store, x.device)
    ladder = (
        _minimal(job, attack, defense, x, y, clean) if attack.minimal else _fixed(job, attack, defense, x, y, clean)
    )
    if weights_hash(defense) != job.defense.weights_sha256:
        raise RuntimeError("the attack changed the defense's weights or buffers: its answers count for nothing")
    return pd.concat(ladder, ignore_index=True)


def _clean_verdict(job: Job, store: Store, device: torch.device) -> Verdict:
    """From the records of the clean pass: asked once per defense, not per cell."""
    pattern = f"*--{job.clean_key[:16]}.parquet"
    paths = list(store.folder.glob(pattern))
    if not paths:
        raise RuntimeError("the clean pass of this defense left no records")
    rows, _ = store.read(paths[0])
    if (rows["status"] != "ok").any() or list(rows["sample"]) != list(job.indices):
        raise RuntimeError(f"the clean pass of this defense failed: {rows['reason'].iloc[0]}")
    return Verdict(
        torch.tensor(rows["clean_label"].to_numpy(), device=device),
        torch.tensor(rows["clean_rejected"].to_numpy(), device=device),
    )


def _fixed(job: Job, attack: Attack, defense: Defense, x: Tensor, y: Tensor, clean: Verdict) -> list[pd.DataFrame]:
    adversarial = x.clone()
    state = _untouched(x, y, clean)
    distance = torch.where(state.success, 0.0, torch.inf)
    frames = []
    for eps in job.eps:
        begun = time.perf_counter()
        active = (~state.success).nonzero()[:, 0]
        outputs, forwards, backwards = _attack(attack, defense, x, y, active, eps, job.seed)
        adversarial[active] = outputs
        fresh = judge(
            defense, x[active], outputs, y[active], Verdict(clean.labels[active], clean.rejected[active]),
            attack.norm, eps, job.draws, job.seed,
        )  # fmt: skip
        state = _merge(state, active, fresh)
        size = _size(state, attack.norm)
        distance = torch.where(state.success & distance.isinf(), size, distance)
        seconds = time.perf_counter() - begun
        frame = _rows(job, eps, x, y, clean, state, distance, forwards, backwards, seconds)
        frames.append(frame.assign(**_images(job, defense, x, adversarial)))
    final = distance.cpu().numpy()
    return [frame.assign(distance=final) for frame in frames]


def _minimal(job: Job, attack: Attack, defense: Defense, x: Tensor, y: Tensor, clean: Verdict) -> list[pd.DataFrame]:
    """One run; at each ε the inputs whose perturbation is no larger count as beaten, the others stand as they were.

    The passes are those of the run: they are recorded at the smallest ε and nowhere else.
    """
    begun = time.perf_counter()
    untouched = _untouched(x, y, clean)
    active = (~untouched.success).nonzero()[:, 0]
    outputs, forwards, backwards = _attack(attack, defense, x, y, active, float("inf"), job.seed)
    adversarial = x.clone()
    adversarial[active] = outputs
    fresh = judge(
        defense, x[active], outputs, y[active], Verdict(clean.labels[active], clean.rejected[active]),
        attack.norm, float("inf"), job.draws, job.seed,
    )  # fmt: skip
    found = _merge(untouched, active, fresh)
    size = _size(found, attack.norm)
    distance = torch.where(found.success, size, torch.inf)
    seconds = time.perf_counter() - begun
    frames = []
    for number, eps in enumerate(job.eps):
        tolerance = TOLERANCE[attack.norm]
        within = found.success & (size <= eps * (1 + tolerance) + tolerance)
        kept = within | ~found.valid
        state = Judgement(
            *(torch.where(kept, a, b) for a, b in zip(vars(found).values(), vars(untouched).values(), strict=True))
        )
        shown = torch.where(expand(within, x), adversarial, x)
        once = 1.0 if number == 0 else 0.0
        frame = _rows(job, eps, x, y, clean, state, distance, forwards * once, backwards * once, seconds * once)
        frames.append(frame.assign(**_images(job, defense, x, shown)))
    return frames


def _attack(
    attack: Attack, defense: Defense, x: Tensor, y: Tensor, active: Tensor, eps: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Attacks those inputs in batches: outputs [A,C,H,W], and passes per input of the whole cell, [N] each."""
    forwards, backwards = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    outputs = x[active].clone()
    for part in torch.arange(len(active)).split(BATCH):
        rows = active[part.to(active.device)]
        target = Target(defense, len(rows), max_forwards=attack.max_forwards)
        found = attack.run(target, x[rows].clone(), y[rows].clone(), eps, seed)
        if not isinstance(found, Tensor):
            raise TypeError(f"the attack returned {type(found).__name__}, not a tensor of images")
        if found.shape != x[rows].shape:
            raise ValueError(f"the attack returned shape {tuple(found.shape)} for inputs {tuple(x[rows].shape)}")
        outputs[part.to(outputs.device)] = found.detach().to(x.device, x.dtype)
        forwards[rows.cpu()], backwards[rows.cpu()] = target.forwards, target.backwards
    return outputs, forwards, backwards


def _untouched(x: Tensor, y: Tensor, clean: Verdict) -> Judgement:
    """The clean inputs as the outputs of an attack: those accepted and wrong already are successes at distance 0."""
    zeros = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    every = torch.ones(len(x), dtype=torch.bool, device=x.device)
    return Judgement(clean.labels, clean.rejected, zeros, zeros, zeros, every, clean.wrong(y))


def _merge(state: Judgement, rows: Tensor, fresh: Judgement) -> Judgement:
    """The state with fresh judgements at those rows."""
    merged = {}
    for name, old in vars(state).items():
        new = old.clone()
        new[rows] = getattr(fresh, name).to(old.dtype)
        merged[name] = new
    return Judgement(**merged)


def _size(state: Judgement, norm: str) -> Tensor:
    return {"linf": state.linf, "l2": state.l2, "l0": state.l0, "unrestricted": state.l2}[norm]


def _rows(
    job: Job,
    eps: float,
    x: Tensor,
    y: Tensor,
    clean: Verdict,
    state: Judgement,
    distance: Tensor,
    forwards: Tensor,
    backwards: Tensor,
    seconds: float,
) -> pd.DataFrame:
    def column(values: Tensor) -> np.ndarray:
        return values.detach().cpu().numpy()

    rows = _skeleton(job, eps).assign(
        clean_label=column(clean.labels),
        clean_rejected=column(clean.rejected),
        adv_label=column(state.labels),
        adv_rejected=column(state.rejected),
        linf=column(state.linf),
        l2=column(state.l2),
        l0=column(state.l0),
        distance=column(distance),
        valid=column(state.valid),
        success=column(state.success),
        forwards=column(forwards),
        backwards=column(backwards),
        seconds=seconds / max(len(x), 1),
        status="ok",
        reason="",
    )
    return typed(rows)


def _skeleton(job: Job, eps: float) -> pd.DataFrame:
    """What is known of every row before anything has run."""
    data = job.dataset.load().test
    index = torch.tensor(job.indices)
    return pd.DataFrame(
        {
            "dataset": job.dataset.name,
            "split": "test",
            "sample": job.indices,
            "input_sha256": _hashes(job),
            "label": data.labels[index].numpy(),
            "defense": job.defense.label,
            "attack": job.label,
            "norm": job.norm,
            "eps": eps,
            "seed": job.seed,
            "protocol": protocol(job.defense.cls.randomized, job.draws),
        }
    )


def _hashes(job: Job) -> list[str]:
    return _hashes_of(job.dataset.name, job.dataset.data, job.indices)


@lru_cache(maxsize=8)
def _hashes_of(name: str, data: Path | None, indices: tuple[int, ...]) -> list[str]:
    from bench.plan import DatasetRef

    return image_hashes(DatasetRef(name, data).load().test.images[torch.tensor(indices)])


def empty_records(job: Job, status: str, reason: str) -> pd.DataFrame:
    """The rows of a cell that did not run, or not to its end: they say so, and hold no figure."""
    nothing: dict[str, Any] = {
        "clean_label": 0, "clean_rejected": False, "adv_label": 0, "adv_rejected": False, "linf": 0.0, "l2": 0.0,
        "l0": 0.0, "distance": np.inf, "valid": False, "success": False, "forwards": 0.0, "backwards": 0.0,
        "seconds": 0.0, "status": status, "reason": reason,
    }  # fmt: skip
    return typed(pd.concat([_skeleton(job, eps).assign(**nothing) for eps in job.eps], ignore_index=True))


def _images(job: Job, defense: Defense, x: Tensor, adversarial: Tensor) -> dict[str, Any]:
    """The image columns: pixels of the first few inputs, none of the others."""
    few = min(SHOWN, len(x))
    shown = adversarial[:few].nan_to_num(0.0).clamp(0, 1)
    seen = defense.perceived(shown)
    columns = {"image_original": x[:few], "image_adversarial": shown, "image_seen": seen}
    rest = [None] * (len(x) - few)
    return {name: [*map(_pixels, images), *rest] for name, images in columns.items()}


def _pixels(image: Tensor) -> bytes:
    return (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy().tobytes()
