"""Remarks about a defense from its clean pass, which reports show as notes to the clean figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from scipy.special import bdtrc
from torch import Tensor, nn

from manifold_bench.attacks.batching import blockwise
from manifold_bench.attacks.contract import Verdict, verdict_of
from manifold_bench.attacks.outputs import Scored, forms_of, probabilities
from manifold_bench.attacks.threat import grey_levels
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.refs import TrainedRef
from manifold_bench.bench.records.schema import DIVERTED, GUESSES, UNDECLARED, UNSTEADY
from manifold_bench.bench.running.derivatives import draws, gradients_fit, rejection_has_gradient
from manifold_bench.bench.running.judge import FEW, Inputs, answers_are_plain, first_of, scored_answers
from manifold_bench.bench.text import percent
from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.checks import in_train_mode
from manifold_bench.defenses.models import Model
from manifold_bench.defenses.weights import read_card

ENOUGH = 8
"""Fewest clean images with which it is tested whether a defense only guesses."""

RENUMBERED = 0.8
"""Share of right answers after classes are renumbered from which on a remark says that their order may be wrong."""

ENOUGH_OF_EACH = 5
"""Fewest clean images for each class with which that is said: of fewer, guesses are often right when renumbered."""

JUMP, SHARE = 10, 0.1
"""Smallest change of the logits that counts as a jump (`levels_of_jumps`): as a multiple of the change between the
lighter and the darker version of an image, and as a share of the mean difference between images."""

NEAR = 0.05
"""Largest distance, in each pixel, of images near clean ones that the defense answers twice."""

OWN_GRADIENT = "look for a detached part or a wrong backward; mb.bpda declares one that is meant to be approximate"


class OutputCheck:
    """A context that records properties of a defense's outputs: `with OutputCheck(defense) as check: …`."""

    def __init__(self, defense: Defense) -> None:
        self.defense = defense
        self._rows = self._alike = 0
        self._plain = False

    def __enter__(self) -> Self:
        self._hook = self.defense.register_forward_hook(self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def _note(self, defense: nn.Module, arguments: tuple[object, ...], outputs: Tensor) -> None:
        self._alike += int(probabilities(outputs, self.defense.num_classes).sum())
        self._rows += len(outputs)
        self._plain |= not forms_of(outputs[:, : self.defense.num_classes])

    @property
    def probabilities(self) -> bool:
        """Whether all outputs look like probabilities, not logits."""
        return 0 < self._rows == self._alike

    def form(self, x: Tensor) -> str:
        """Return the form of the outputs, as attacks decide it by clean images x [N,C,H,W]; ordinary ones: logits."""
        return "logits" if self._plain else Scored(self.defense, self.defense.num_classes).chosen_form(x)


def remarks(job: Job, inputs: Inputs, clean: Verdict, outputs: OutputCheck, uneven: bool) -> Iterator[str]:
    """Yield a sentence for each odd property of a defense that answered `clean` to the inputs of a clean pass.

    outputs: record of its outputs. uneven: whether its layers round differently for other batch sizes.
    """
    defense, x = outputs.defense, inputs.x
    if isinstance(defense, Model) and (seen := job.dataset.load().seen):
        yield seen
    guesses = list(_guesses(defense, clean, inputs.y))
    yield from guesses
    yield from _unused_output(defense, inputs.y, bool(guesses))
    if outputs.probabilities:
        yield "its outputs look like probabilities (each row sums to 1); attacks take their logarithms"
    elif (form := outputs.form(x)) != "logits":
        taken = "logarithms" if form == "likelihoods" else "log-odds"
        yield f"its outputs look like {form}, whose gradients vanish; attacks take their {taken}"
    if defense.rejects and clean.rejected.all():
        yield "it rejects every image"
    elif defense.rejects and not clean.rejected.any() and not scored_answers(defense, _noise(x))[:, 1].any():
        yield "its reject score never wins, neither for these images nor for uniform noise"
    elif defense.rejects and answers_are_plain(defense) and not rejection_has_gradient(defense, x[:FEW]):
        cure = "a score minus its threshold has one (mb.append_reject_score)"
        yield f"its reject score has no gradient, so that only attacks by queries see the detector; {cure}"
    elif not defense.rejects and clean.rejected.any():
        yield "its verdict rejects images although rejects is False, so that attacks do not see it"
    yield from repeats(defense, first_of(x, defense), job.draws, uneven)
    if any(getattr(layer, "training", False) for layer in defense.modules()):  # frozen TorchScript has no mode
        yield "its forward puts layers into train mode, so that later answers may differ"
    yield from _left_in_train_mode(job.defense)


def _guesses(defense: Defense, clean: Verdict, labels: Tensor) -> Iterator[str]:
    """Yield a remark if answers to clean images are not more often right than guesses, at a level of 5 %."""
    right, n = int((clean.labels == labels).sum()), len(labels)
    if n < ENOUGH:
        return
    if bdtrc(right - 1, n, 1 / defense.num_classes) > 0.05:  # the chance that guesses are right that often
        advice = ""
        if isinstance(defense, Model) and defense.spec.normalize is None:
            advice = "; if its weights are in a file, hand that in as well (net.py:Net@FILE, in Python (Net, FILE)); "
            advice += "if it was trained on normalized images, say normalize = [mean, standard deviation]"
        enough = n >= ENOUGH_OF_EACH * defense.num_classes
        if enough and (renumbered := _most_right(clean.labels, labels) / n) >= RENUMBERED:
            advice += f"; {percent(renumbered)} % would be right if it numbered the classes otherwise, so its outputs "
            advice += "and the labels seem to have the classes in different orders (a folder's are sorted by name)"
        yield f"it is right on {percent(right / n)} % of {n} clean images, {GUESSES}{advice}"


def _unused_output(defense: Defense, labels: Tensor, guesses: bool) -> Iterator[str]:
    """Yield a remark if a model's last outputs are no classes, or a reject score: no image has these classes.

    guesses: whether its answers are no better than guesses, which makes that likely. Otherwise it is said only of so
    many images that the classes are missing among them by a chance of at most 5 %.
    """
    classes, known = defense.num_classes, int(labels.max()) + 1
    if not isinstance(defense, Model) or defense.rejects or known == classes:
        return
    if not ((guesses and known + 1 == classes) or (known / classes) ** len(labels) <= 0.05):
        return
    if known + 1 == classes:
        last = f"it has {classes} outputs, but no label is {known}"
        yield f"{last}; if the last output is a reject score, say rejects = true"
    else:
        yield f"it has {classes} outputs, but no label is above {known - 1}; its last layer should have one per class"


def _most_right(answers: Tensor, labels: Tensor) -> int:
    """Return how many answers are right if each class that a defense names means the class that suits them best."""
    # late: it takes half a second, and few defenses need it
    from scipy.optimize import linear_sum_assignment

    size = 1 + int(torch.cat([answers, labels]).max())
    pairs = torch.bincount(size * answers.clamp_min(0) + labels, minlength=size * size).reshape(size, size).numpy()
    return int(pairs[linear_sum_assignment(pairs, maximize=True)].sum())


def _noise(like: Tensor) -> Tensor:
    return draws((FEW, *like.shape[1:]), 0).to(like)


def _moved(few: Tensor) -> Tensor:
    """Return images near images [n,C,H,W], at most `NEAR` from them in each pixel."""
    return (few + NEAR * (2 * _noise(few) - 1)[: len(few)]).clamp(0, 1)


def _near(defense: Defense, few: Tensor) -> tuple[Tensor, Tensor]:
    """Return a defense's answers to the same images near clean ones twice: some draw only where an image is not clean.

    A defense that fails there fails under attack, and for its clean images alone it does not matter.
    """
    near = _moved(few)
    try:
        return scored_answers(defense, near), scored_answers(defense, near)
    except Exception:  # a user's code may raise anything
        return torch.empty(0), torch.empty(0)


def repeats(defense: Defense, few: Tensor, draws: int, uneven: bool) -> Iterator[str]:
    """Yield remarks if answers to the same images differ from call to call, or from batch to batch.

    draws: number of draws on which a randomized defense is judged. uneven: whether layers may round differently for
    other batch sizes.
    """
    first, again = scored_answers(defense, few), scored_answers(defense, few)

    def alike(one: Tensor, other: Tensor) -> bool:
        rounding = 0.01 if few.is_cuda else 1e-5  # sums on a GPU have no order
        return torch.allclose(one, other, rtol=rounding, atol=rounding, equal_nan=True)

    if defense.randomized:
        if torch.equal(first.nan_to_num(), again.nan_to_num()):
            yield "randomized is True, but its answers to the same images are the same"
        if draws == 1:
            yield "it is randomized and judged on one draw; set draws to count the worst of several"
    elif not alike(first, again) or not alike(*_near(defense, few)):
        yield f"{UNDECLARED} although randomized is False; if that is meant, say randomized = True, and draws"
    elif not torch.equal(again[:, :2], scored_answers(defense, few, batch_size=1)[:, :2]):
        # scores are not compared, because they may differ in their last bits
        perhaps = ", perhaps by rounding alone: this machine's kernels round by the size of the batch"
        yield f"{UNSTEADY}depend on the batch{perhaps if uneven else ''}"
    elif not answers_are_plain(defense):
        return  # it optimises at inference: its gradients have forms of their own, and every answer takes long
    elif not _same_in_other_batches(defense, few):
        yield f"{DIVERTED}in another order of a batch or with other images in it"
    elif not _same_under_gradient(defense, few):
        yield f"{DIVERTED}while a gradient is computed, so that attacks climb another model than is judged"
    elif not _same_as_outputs(defense, few):
        yield f"{DIVERTED}from what its outputs say (verdict and forward disagree), so that attacks climb another model"
    elif levels_of_jumps(defense, few):
        yield f"{DIVERTED}as soon as pixels are no whole grey levels, as they are in attacks"
    elif not gradients_fit(defense, few):
        yield f"{DIVERTED}from what its gradients predict, so that these mislead attacks ({OWN_GRADIENT})"


def _same_in_other_batches(defense: Defense, few: Tensor) -> bool:
    """Return whether outputs for images [n,C,H,W] are those in the other order and for each alone, up to rounding."""
    try:
        with torch.no_grad():
            plain, turned = defense(few.clone()), defense(few.flip(0)).flip(0)
            # some models take no single image
            alone = torch.cat([defense(one.repeat(FEW, 1, 1, 1))[:1] for one in few.split(1)])
    except Exception:  # as in `_near`
        return True
    return _alike(turned, plain) and _alike(alone, plain)


def _alike(outputs: Tensor, expected: Tensor) -> bool:
    """Return whether outputs [n,K] are the expected ones, up to a hundredth of the largest."""
    largest = expected.abs().nan_to_num(posinf=0.0).amax()
    return torch.allclose(outputs, expected, rtol=0.01, atol=float(0.01 * largest), equal_nan=True)


def _same_under_gradient(defense: Defense, few: Tensor) -> bool:
    """Return whether outputs for images [n,C,H,W] are those without a gradient, up to rounding."""
    with torch.no_grad():
        plain = defense(few.clone())
    try:
        with torch.enable_grad():
            climbed = defense(few.clone().requires_grad_()).detach()
    except Exception:  # a user's code may raise anything; an attack then fails by name
        return True
    return _alike(climbed, plain)


def _same_as_outputs(defense: Defense, few: Tensor) -> bool:
    """Return whether the deployed answers to images [n,C,H,W], to images near them and to noise are those of `forward`.

    A single other answer is put down to rounding. Noise shows most, because on it two models seldom agree.
    """
    images = torch.cat([few, _moved(few), _noise(few)])
    try:
        answers, said = scored_answers(defense, images), verdict_of(blockwise(defense, images), defense.num_classes)
    except Exception:  # as in `_near`
        return True
    rejected = answers[:, 1].bool()
    return int(((rejected != said.rejected) | (~rejected & (answers[:, 0].long() != said.labels))).sum()) <= 1


@torch.no_grad()
def levels_of_jumps(defense: Defense, images: Tensor) -> int | None:
    """Return the number of grey levels of images [N,C,H,W] if answers jump between them, or else None.

    The first `FEW` images are made lighter, and darker, by less than half a grey level. It is a jump if both changes
    move the class logits by `JUMP` times as much as the two versions differ from each other, and by `SHARE` of the mean
    difference between images. A smooth function does not jump, and a model that rounds jumps in one direction alone. If
    most of the images are accepted, and both changes make the defense reject more than half of these, it jumps as well.
    Defenses that are randomized or optimise at inference are not tried.
    """
    few = images[:FEW]
    if not answers_are_plain(defense) or len(few) < 2 or (levels := grey_levels(few)) is None:
        return None
    step = 0.2 / levels * (0.5 + 0.5 * _noise(few)[: len(few)])
    try:
        versions = few.clone(), (few + step).clamp(0, 1), (few - step).clamp(0, 1)
        whole, light, dark = (defense(one)[:, : defense.num_classes].double() for one in versions)
        accepted, *kept = (int((scored_answers(defense, one)[:, 1] == 0).sum()) for one in versions)
    except Exception:  # as in `_near`
        return None
    pairs = (whole, light), (whole, dark), (light, dark), (whole, whole.roll(1, 0))
    up, down, between, among = (float((one - other).nan_to_num(0, 0, 0).abs().mean()) for one, other in pairs)
    rejects = 2 * accepted > len(few) and 2 * max(kept) < accepted
    return levels if rejects or min(up, down) > max(SHARE * among, JUMP * between) else None


def _left_in_train_mode(ref: TrainedRef) -> Iterator[str]:
    """Yield a remark if the defense's constructor, or its `fit`, left layers in train mode that depend on the mode.

    For a defense with trained weights `fit` counts, for others the constructor.
    """
    if ref.weights is None:
        built = ref.build()
        given, layers = isinstance(built, Model), in_train_mode(built)
        where = "was handed in with" if given else "has a constructor that leaves"
    else:
        where, layers = "has a fit that leaves", read_card(ref.weights).notes.get("in train mode", [])
    if layers:
        yield f"it {where} {', '.join(layers)} in train mode, but like all defenses it is evaluated in eval mode"
