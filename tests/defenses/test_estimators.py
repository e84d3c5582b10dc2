from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toys import Parity

from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.defenses.estimators import AcceptedAndWrong, projection_preprocessor, to_art, to_foolbox
from manifold_bench.defenses.invert_and_classify import InvertAndClassify
from manifold_bench.defenses.models import ModelSpec, as_defense
from manifold_bench.defenses.solvers import MomentumSolver
from manifold_bench.defenses.variational_autoencoder import VariationalAutoencoderSettings


@pytest.fixture(scope="module")
def inc() -> InvertAndClassify:
    """Untrained: the gradients are what is tested."""
    torch.manual_seed(0)
    spec = InvertAndClassify.Spec(
        shape=(1, 8, 8),
        num_classes=10,
        generator=VariationalAutoencoderSettings(latent=4, width=4),
        solver=MomentumSolver(steps=20, rate=5.0, starts=2),
    )
    defense = InvertAndClassify(spec).eval()
    defense.held_out.keep(torch.full((1, 1), 2.0))
    return defense


def test_art_classifier_answers_as_the_defense(digits, digits_cnn, inc):
    x = digits.test.images[:16]
    for defense in (digits_cnn, inc):
        classifier = to_art(defense)
        answers = classifier.predict(x.double().numpy())
        assert answers.dtype == np.float32
        assert classifier.nb_classes == answers.shape[1] == 10 + defense.rejects
        assert classifier.clip_values is not None and tuple(map(float, classifier.clip_values)) == (0.0, 1.0)
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(answers), defense(x), atol=1e-5)


def test_art_gradients_are_those_of_the_defense(digits, digits_cnn):
    x, y = digits.test.images[:8], digits.test.labels[:8]
    classifier = to_art(digits_cnn)
    theirs = classifier.loss_gradient(x.numpy(), F.one_hot(y, 10).numpy())
    point = x.clone().requires_grad_(True)
    (ours,) = torch.autograd.grad(F.cross_entropy(digits_cnn(point), y), point)
    assert torch.allclose(torch.from_numpy(theirs), ours, atol=1e-6)
    by_class = classifier.class_gradient(x.numpy(), label=3)[:, 0]
    (ours,) = torch.autograd.grad(digits_cnn(point)[:, 3].sum(), point)
    assert torch.allclose(torch.from_numpy(by_class), ours, atol=1e-5)


def test_foolbox_model_and_criterion(digits, inc):
    x = digits.test.images[:16]
    with torch.no_grad():
        logits = inc(x)
        assert torch.allclose(to_foolbox(inc)(x), logits, atol=1e-5)
    y = digits.test.labels[:16]
    verdict = inc.verdict(x)
    assert torch.equal(AcceptedAndWrong(y, 10)(x, logits), verdict.wrong(y))


def test_the_criterion_excludes_rejection():
    outputs = torch.tensor([[3.0, 1, 2], [1, 3, 2], [1, 2, 3]])
    assert AcceptedAndWrong(torch.tensor([0, 0, 0]), 2)(outputs, outputs).tolist() == [False, True, False]


def test_preprocessor_gradient_is_the_classifiers_at_the_projection(digits, inc):
    from art.estimators.classification import PyTorchClassifier

    x, y = digits.test.images[:8], digits.test.labels[:8]
    classifier = PyTorchClassifier(
        model=inc.classifier,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        preprocessing_defences=[projection_preprocessor(inc)],
        device_type="cpu",
    )
    theirs = classifier.loss_gradient(x.numpy(), F.one_hot(y, 10).numpy())

    projected = inc.perceived(x).requires_grad_(True)
    (ours,) = torch.autograd.grad(F.cross_entropy(inc.classifier(projected), y), projected)
    assert ours.abs().max() > 1e-4
    assert torch.allclose(torch.from_numpy(theirs), ours, atol=1e-6)
    assert not torch.allclose(projected, x, atol=0.1)
    with torch.no_grad():
        assert np.allclose(classifier.predict(x.numpy()), inc.classifier(inc.perceived(x)), atol=1e-4)


def test_pgd_called_directly_in_both_libraries(digits, digits_cnn):
    """The same steps give the same images in ART, in Foolbox and here, where ours neither stops early nor turns back.

    Of two classes, since with more the temperature of our cross-entropy is another. Below 1e-4 the softmax of the true
    class is so near 1 that the libraries' float32 gradient is rounding noise.
    """
    import foolbox
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    x, y = digits.test.images[:128], digits.test.labels[:128] % 2
    defense = as_defense(Parity(digits_cnn), ModelSpec(shape=(1, 8, 8), num_classes=2))
    art = ProjectedGradientDescentPyTorch(
        to_art(defense), eps=0.05, eps_step=0.01, max_iter=5, batch_size=128, verbose=False
    )
    by_art = torch.from_numpy(art.generate(x.numpy(), y=F.one_hot(y, 2).numpy()))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=5, random_start=False)
    _, by_foolbox, _ = attack(to_foolbox(defense), x, y, epsilons=0.05)
    ours = PGD(steps=5, step_size=0.01, random_start=False, loss="cross-entropy").run(
        Target(defense, 128), x, y, 0.05, seed=0
    )
    with torch.no_grad():
        before = F.cross_entropy(defense(x), y, reduction="none")
        after = F.cross_entropy(defense(by_art), y, reduction="none")
    rest = ~defense.verdict(ours).wrong(y) & (before > 1e-4) & (after > before)
    assert rest.sum() > 32
    for theirs in (by_art, by_foolbox):  # but for rounding where a gradient is nearly zero
        assert ((ours - theirs)[rest].abs() > 1e-5).float().mean() < 0.01
