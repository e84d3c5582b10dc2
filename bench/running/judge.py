"""The judge: it decides by itself whether an attack's outputs are valid, and whether they succeed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.contract import Verdict, succeeded
from manifold_bench.attacks.threat import Norm, expand, flat_norm, inside
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.records.schema import ANSWERS
from manifold_bench.bench.text import norm_text
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.checks import check_outputs, check_verdict

FEW, FEW_OPTIMISING = 8, 2
"""Numbers of clean images that a defense answers again, to see whether its answers are still the same; the second for
defenses that optimise at inference, whose answers take long. Of randomized ones more are needed to see differences."""


def load_defense(job: Job, x: Tensor) -> Defense:
    """Return a new instance of the job's defense, which checks its outputs (`with_checks`). x: the job's images."""
    return begun(with_checks(job.defense.load(job.device)), x)


def answers_are_plain(defense: Defense) -> bool:
    """Return whether a defense is neither randomized nor optimises at inference, so that more answers cost little."""
    return not defense.randomized and defense.gradient_modes == ("default",)


def first_of(x: Tensor, defense: Defense) -> Tensor:
    """Return those of the images x [N,C,H,W] that a defense answers again (`FEW`)."""
    return x[: FEW if defense.randomized or answers_are_plain(defense) else FEW_OPTIMISING]


def begun(defense: Defense, x: Tensor) -> Defense:
    """Let a new instance answer the first of the images x [N,C,H,W] once, and return it.

    A model may take some state from the first images that it sees, and has to be the same in each process. Randomized
    defenses and those that optimise at inference are left out.
    """
    if answers_are_plain(defense):
        with suppress(Exception):  # what it raises, it raises again where it is judged or attacked
            first_answers(defense, x)
    return defense


def with_checks(defense: Defense) -> Defense:
    """Let a defense raise ContractError for outputs that are no answer, such as NaN, and return it.

    Outputs of a subclass of Tensor become plain tensors, because a subclass may compute an argmax of its own.
    """

    def checked(defense: Defense, arguments: tuple[Tensor, ...], outputs: Tensor) -> Tensor | None:
        check_outputs(defense, arguments[0], outputs)
        return None if type(outputs) is Tensor else outputs.as_subclass(Tensor)

    defense.register_forward_hook(checked)
    return defense


@dataclass(frozen=True)
class ScoredVerdict(Verdict):
    """A verdict that always has scores, float64 [N]; NaN for a defense without scores."""

    scores: Tensor


@dataclass(frozen=True, kw_only=True)
class WorstVerdict(ScoredVerdict):
    """The worst of n answers to each of N inputs. answers: columns `schema.ANSWERS` on all n of them, int64 [N,5]."""

    answers: Tensor

    def of(self, rows: Tensor) -> WorstVerdict:
        """Return the answers to the inputs at those rows."""
        first = (values[rows] for values in (self.labels, self.rejected, self.scores))
        return WorstVerdict(*first, answers=self.answers[rows])


@dataclass(frozen=True)
class Inputs:
    """The inputs of a job, with a row for each pair of input and target class.

    x: images [N,C,H,W]. y: labels [N]; −1 for noise. aims: target classes [N]; −1 without one. number: index of each
    row's input among the job's inputs, ascending, [N].
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


def verdict(defense: Defense, x: Tensor, y: Tensor, draws: int, seed: int, aims: Tensor | None = None) -> WorstVerdict:
    """Return a new answer of the deployed defense to x [N,C,H,W] with labels y [N]; aims [N] as in `succeeded`.

    A randomized defense answers `draws` times. An input counts as beaten if any answer is a success, and else as
    rejected if any answer is a rejection; the score is that of the answer that counts. Nothing is cached.
    """
    defense.eval()
    times = draws if defense.randomized else 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        given = [_answer(defense, x) for _ in range(times)]
    worst = given[0]
    for new in given[1:]:
        takes = ~succeeded(worst, y, aims) & (succeeded(new, y, aims) | (new.rejected & ~worst.rejected))
        worst = ScoredVerdict(
            torch.where(takes, new.labels, worst.labels),
            torch.where(takes, new.rejected, worst.rejected),
            torch.where(takes, new.scores, worst.scores),
        )
    return WorstVerdict(worst.labels, worst.rejected, worst.scores, answers=answer_columns(given, y, aims))


def answer_columns(given: Sequence[Verdict], y: Tensor, aims: Tensor | None = None) -> Tensor:
    """Return the columns `schema.ANSWERS`, int64 [N,5], of n answers to inputs with labels y [N]; aims [N]."""
    named = torch.stack([one.labels.masked_fill(one.rejected, -1) for one in given])  # [n,N]
    votes = torch.stack([(named == one).sum(0) for one in named])
    columns = {
        "answers": torch.full_like(y, len(given)),
        "answers_right": ((named == y) & (y >= 0)).sum(0),
        "answers_wrong": torch.stack([succeeded(one, y, aims) for one in given]).sum(0),
        "first_answer": named[0],
        "majority_answer": named.gather(0, votes.argmax(0, keepdim=True))[0],  # the first one of several
    }
    return torch.stack([columns[name] for name in ANSWERS], dim=1)


def _answer(defense: Defense, x: Tensor) -> ScoredVerdict:
    answer = scored_answers(defense, x)
    return ScoredVerdict(answer[:, 0].long(), answer[:, 1].bool(), answer[:, 2])


def _columns(defense: Defense, x: Tensor) -> Tensor:
    """Return the verdict on a copy of x as float64 [N,3]: label, rejected, score."""
    try:
        answer = defense.verdict(x.clone())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch's words about sizes name neither the defense nor its input
        shape = ", ".join(map(str, x.shape[1:]))
        raise RuntimeError(f"{type(defense).__name__} fails on images of shape [N, {shape}]: {error}") from error
    check_verdict(defense, answer, len(x))
    scores = torch.full_like(answer.labels, torch.nan, dtype=torch.float64) if answer.scores is None else answer.scores
    return torch.stack([column.double() for column in (answer.labels, answer.rejected, scores)], dim=1)


def scored_answers(defense: Defense, x: Tensor, batch_size: int | None = None) -> Tensor:
    """Return label, rejection and score (NaN without one) of images x [N,C,H,W], float64 [N,3].

    Nothing is cached, so that a randomized defense draws again. batch_size: see `blockwise`.
    """
    return blockwise(lambda part: _columns(defense, part), x, batch_size)


def first_answers(defense: Defense, x: Tensor) -> Tensor:
    """Return label and rejection of the first images of x [N,C,H,W] (`first_of`) as a defense answers now, [n,2]."""
    defense.eval()
    return scored_answers(defense, first_of(x, defense))[:, :2].cpu()


@dataclass(frozen=True)
class Judgement:
    """The judgement of N outputs: the worst answer, the measured distances, validity, and success, all [N].

    answers: counts and classes of the answers to each output, in the columns of `schema.ANSWERS`, int64 [N,5].
    """

    labels: Tensor
    rejected: Tensor
    scores: Tensor
    linf: Tensor
    l2: Tensor
    l1: Tensor
    l0: Tensor
    valid: Tensor
    success: Tensor
    answers: Tensor

    @property
    def wins(self) -> Tensor:
        """Number of answers that are successes, [N]; 0 where the output is not valid."""
        return self.answers[:, list(ANSWERS).index("answers_wrong")] * self.valid

    @property
    def beaten(self) -> Tensor:
        """Whether every answer is a success, [N]. For a deterministic defense it is the same as success."""
        return self.wins == self.answers[:, 0]

    def distance(self, norm: str) -> Tensor:
        """Return the size of each perturbation in that norm; in L2 for norms without ε."""
        return {"linf": self.linf, "l1": self.l1, "l0": self.l0}.get(norm, self.l2)

    def of(self, rows: Tensor) -> Judgement:
        """Return the part of this judgement that is about the inputs in these rows."""
        return Judgement(*(values[rows] for values in vars(self).values()))

    def replaced(self, rows: Tensor, new: Judgement) -> Judgement:
        """Return this judgement with the values of `new` at those rows; new: judgement of these rows alone."""
        pairs = zip(vars(self).values(), vars(new).values(), strict=True)
        return Judgement(*(old.index_put((rows,), fresh.to(old.dtype)) for old, fresh in pairs))

    def where(self, kept: Tensor, other: Judgement) -> Judgement:
        """Return this judgement where kept [N] is true, and the other one elsewhere."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Judgement(*(torch.where(expand(kept, mine), mine, others) for mine, others in pairs))


def unperturbed(inputs: Inputs, clean: WorstVerdict) -> Judgement:
    """Return the judgement of clean inputs: those that are accepted and wrong are successes at distance 0."""
    zeros = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.x.device)
    success = succeeded(clean, inputs.y, inputs.aims)
    every = torch.ones_like(success)
    return Judgement(
        clean.labels, clean.rejected, clean.scores, zeros, zeros, zeros, zeros, every, success, clean.answers
    )


class CertificateContradictedError(RuntimeError):
    """An attack succeeded on an input that the defense certified as robust: the proof or the judge is wrong."""


def check_certificate(defense: Defense, inputs: Inputs, judged: Judgement) -> None:
    """Raise CertificateContradictedError where an attack succeeded within a radius that the defense proves to be safe.

    Statistical certificates are not checked: they may be wrong, and a defense that draws its answers may give a wrong
    one by chance.
    """
    certificate = defense.certificate
    rows = (judged.success & (inputs.y >= 0)).nonzero()[:, 0]
    if certificate is None or certificate.alpha or not len(rows):
        return
    size = judged.distance(certificate.norm)[rows]
    proven = defense.certified(inputs.x[rows], inputs.y[rows], size[:, None])[:, 0]
    if proven.any():
        first = int(proven.nonzero()[0, 0])
        raise CertificateContradictedError(
            f"{type(defense).__name__} proves the answers to {int(proven.sum())} of the inputs safe that this attack "
            f"beat, such as input {int(inputs.number[rows[first]])} at a {norm_text(certificate.norm)} distance of "
            f"{float(size[first]):.6g}: its certificate or the judge is wrong"
        )


@dataclass(frozen=True)
class Judge:
    """A judge of outputs of attacks in one norm on a defense. draws, seed: see `verdict`."""

    defense: Defense
    norm: Norm
    draws: int
    seed: int

    def judge(self, inputs: Inputs, clean: WorstVerdict, adversarial: Tensor, eps: float) -> Judgement:
        """Judge an attack's outputs [N,C,H,W] on inputs to which the defense gave these clean answers.

        Outputs that are not finite, not in [0,1] or not in the ε-ball are not valid: they are no success, and the clean
        answer is used for them. The clean answer is also used for unchanged inputs of a deterministic defense. Raises
        ValueError if the attack returned another shape, and CertificateContradictedError if it refutes a proof.
        """
        x, y, aims = inputs.x, inputs.y, inputs.aims
        if adversarial.shape != x.shape:
            raise ValueError(f"the attack returned shape {tuple(adversarial.shape)} for inputs {tuple(x.shape)}")
        valid = inside(adversarial, x, self.norm, eps)
        judged = torch.where(valid.view(-1, 1, 1, 1), adversarial, x).clamp(0, 1)
        answer = verdict(self.defense, judged, y, self.draws, self.seed, aims)
        delta = (adversarial.double() - x.double()).nan_to_num(torch.inf, torch.inf, torch.inf)
        changed = (delta != 0).flatten(1).any(1)
        counts = valid & (changed | self.defense.randomized)
        answer = WorstVerdict(
            torch.where(counts, answer.labels, clean.labels),
            torch.where(counts, answer.rejected, clean.rejected),
            torch.where(counts, answer.scores, clean.scores),
            answers=torch.where(counts[:, None], answer.answers, clean.answers),
        )
        judgement = Judgement(
            labels=answer.labels,
            rejected=answer.rejected,
            scores=answer.scores,
            linf=flat_norm(delta, "linf"),
            l2=flat_norm(delta, "l2"),
            l1=flat_norm(delta, "l1"),
            l0=flat_norm(delta, "l0"),
            valid=valid,
            success=valid & succeeded(answer, y, aims),
            answers=answer.answers,
        )
        check_certificate(self.defense, inputs, judgement)
        return judgement
