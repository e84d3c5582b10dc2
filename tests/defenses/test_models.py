"""Models of others as defenses: the same answers, and gradients that are those of the whole model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manifold_bench.defenses.base import Defense
from manifold_bench.defenses.bpda import bpda
from manifold_bench.defenses.models import ModelSpec, as_defense
from manifold_bench.defenses.undefended import Undefended

SPEC = ModelSpec(shape=(3, 4, 4), num_classes=5)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def defended(model, randomized: bool = False, **usage) -> Defense:
    return as_defense(model, dataclasses.replace(SPEC, **usage), randomized)


def gradient(function, x: Tensor, weights: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad((function(x) * weights).sum(), x)[0]


def same(defense, function, x: Tensor) -> None:
    """Asserts that a defense has the outputs and the gradients of a function."""
    weights = torch.randn(len(x), 5, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(defense(x), function(x), atol=1e-6)
    assert torch.allclose(gradient(defense, x, weights), gradient(function, x, weights), atol=1e-6)


def test_a_module_a_function_and_torchscript_answer_as_they_are(net, x):
    for model in (net, lambda images: net(images), torch.jit.script(net)):
        same(defended(model), net, x)


def test_a_defense_stays_as_it_is():
    spec = ModelSpec(shape=(1, 8, 8), num_classes=10)
    defense = Undefended(Undefended.Spec(shape=(1, 8, 8), num_classes=10, width=4))
    assert as_defense(defense, spec) is defense
    with pytest.raises(TypeError, match="normalize"):
        as_defense(defense, dataclasses.replace(spec, normalize=(0.5, 0.5)))
    with pytest.raises(ValueError, match="10 classes"):
        as_defense(defense, SPEC)


def test_inputs_are_normalized_for_each_channel(net, x):
    mean, deviation = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    defense = defended(net, normalize=(mean, deviation))
    same(
        defense,
        lambda images: net((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)),
        x,
    )
    same(defended(net, normalize=(0.5, 0.25)), lambda images: net((images - 0.5) / 0.25), x)


@pytest.mark.parametrize("normalize", [((0.1, 0.2), 1.0), (0.0, 0.0), (0.0, (1.0, -1.0, 1.0))])
def test_a_normalization_that_makes_no_sense_is_refused(net, normalize):
    with pytest.raises(ValueError, match="normalize"):
        defended(net, normalize=normalize)


def test_the_model_that_was_handed_in_is_left_alone(net, x):
    net.append(nn.Dropout(0.5)).train()
    with pytest.warns(UserWarning, match="training mode"):
        defense = defended(net)
    assert net.training and not defense.training
    assert torch.equal(defense(x), defense(x))
    with torch.no_grad():
        next(defense.parameters()).zero_()
    assert not any((part == 0).all() for part in net.parameters())


def test_rejecting_and_randomized_models(net, x):
    class Detector(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = net(images)
            return torch.cat([logits, logits.amax(1, keepdim=True) + images.mean((1, 2, 3))[:, None] - 0.5], dim=1)

    defense = defended(Detector(), rejects=True)
    assert defense.rejects
    assert torch.equal(defense.verdict(x).rejected, x.mean((1, 2, 3)) > 0.5)
    with pytest.raises(ValueError, match="rejects=True"):
        defended(Detector())
    assert defended(lambda images: net(images + 0.1 * torch.rand_like(images)), randomized=True).randomized


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (nn.Linear, TypeError),
        (None, TypeError),
        ("net.pt", TypeError),
        (nn.Linear(7, 5), ValueError),
        (lambda x: x, ValueError),
        (lambda x: x.flatten(1)[:, :4], ValueError),
        (lambda x: x.flatten(1)[:, :5].argmax(1), ValueError),
        (lambda x: x.flatten(1)[:, :5].numpy(), ValueError),
        (lambda x: None, ValueError),
        (lambda: None, ValueError),
    ],
)
def test_what_is_no_model_of_these_images_is_refused_in_one_line(model, error):
    with pytest.raises(error) as caught:
        defended(model)
    assert "\n" not in str(caught.value)


def art_classifier(net: nn.Module, *steps, **kwargs):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (3, 4, 4), 5, preprocessing_defences=list(steps) or None, **kwargs
    )


def squeezing():
    from art.defences.preprocessor import FeatureSqueezing

    return FeatureSqueezing(clip_values=(0.0, 1.0), bit_depth=3)


def smoothing():
    from art.defences.preprocessor import SpatialSmoothing

    return SpatialSmoothing(window_size=3, channels_first=True, clip_values=(0.0, 1.0))


@pytest.mark.parametrize("steps", [(), (squeezing,), (smoothing,), (squeezing, smoothing)])
def test_an_art_classifier_answers_with_its_preprocessing_and_has_gradients(net, x, steps):
    classifier = art_classifier(net, *(step() for step in steps), preprocessing=(0.5, 0.25))
    defense = defended(classifier)

    seen = x.numpy()
    for step in steps:
        seen = step()(seen)[0].astype(np.float32)
    expected = net((torch.from_numpy(seen) - 0.5) / 0.25)
    assert torch.allclose(defense(x), expected, atol=1e-5)

    # both preprocessors' own gradient is the identity, so the gradient is that of the network where it was evaluated
    weights = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    expected = gradient(lambda images: net((images - 0.5) / 0.25), torch.from_numpy(seen), weights)
    assert torch.allclose(gradient(defense, x, weights), expected, atol=1e-5)


def test_the_gradients_of_an_art_classifier_are_those_of_its_loss_gradient(net, x):
    classifier = art_classifier(net, smoothing(), preprocessing=(0.5, 0.25))
    y = torch.arange(6) % 5
    images = x.clone().requires_grad_()
    nn.functional.cross_entropy(defended(classifier)(images), y, reduction="sum").backward()
    theirs = classifier.loss_gradient(x.numpy(), nn.functional.one_hot(y, 5).numpy())
    assert np.allclose(images.grad.numpy() / len(x), theirs, atol=1e-6) or np.allclose(
        images.grad.numpy(), theirs, atol=1e-6
    )


def test_an_art_classifier_answers_with_its_postprocessing_and_has_the_gradients_of_its_outputs(net, x):
    from art.defences.postprocessor import ClassLabels, HighConfidence

    def forgets(cutoff: float) -> list[HighConfidence]:
        return [HighConfidence(cutoff)]  # all outputs below the cutoff become 0, so that class 0 is the answer

    for postprocessing in (forgets(0.01), forgets(0.3), [ClassLabels()], [*forgets(0.3), ClassLabels()]):
        classifier = art_classifier(net, postprocessing_defences=postprocessing)
        answers = defended(classifier)(x).argmax(1)
        assert np.array_equal(answers, classifier.predict(x.numpy()).argmax(1))
        weights = torch.randn(len(x), 5, generator=torch.Generator().manual_seed(2))
        assert torch.allclose(gradient(defended(classifier), x, weights), gradient(net, x, weights), atol=1e-6)
    changed = art_classifier(net, postprocessing_defences=forgets(0.3)).predict(x.numpy()).argmax(1)
    assert not np.array_equal(changed, net(x).argmax(1)), "the case would show nothing"


def test_an_art_classifier_for_other_values_gets_those(net, x):
    classifier = art_classifier(net, clip_values=(0.0, 255.0), preprocessing=(0.0, 255.0))
    same(defended(classifier), net, x)


def test_an_art_classifier_without_torch_is_differentiated_by_its_class_gradient(x):
    from art.estimators.classification import BlackBoxClassifier

    matrix = torch.randn(48, 5, generator=torch.Generator().manual_seed(3))

    class Linear(BlackBoxClassifier):
        def class_gradient(self, images, label=None, **kwargs):
            return np.broadcast_to(matrix.T.reshape(1, 5, 3, 4, 4).numpy(), (len(images), 5, 3, 4, 4))

    def predict(images):
        return images.reshape(len(images), -1) @ matrix.numpy()

    def linear(images: Tensor) -> Tensor:
        return images.flatten(1) @ matrix

    arguments = ((3, 4, 4), 5, (0.0, 1.0))
    same(defended(Linear(predict, *arguments)), linear, x)
    blind = defended(BlackBoxClassifier(predict, *arguments))
    assert torch.allclose(blind(x), linear(x), atol=1e-5)
    with pytest.raises(NotImplementedError, match="has no gradients"):
        gradient(blind, x, torch.ones(6, 5))


def test_an_art_classifier_of_flat_inputs_gets_these_and_has_its_gradient(x):
    from art.estimators.classification import SklearnClassifier
    from sklearn.linear_model import LogisticRegression

    few, labels = np.random.default_rng(0).random((40, 48), np.float32), np.arange(40) % 5
    classifier = SklearnClassifier(LogisticRegression().fit(few, labels), clip_values=(0.0, 1.0))
    defense, flat, weights = defended(classifier), x.flatten(1).numpy(), torch.ones(6, 5)
    assert torch.allclose(defense(x), torch.tensor(classifier.predict(flat), dtype=torch.float32))
    expected = torch.tensor(classifier.class_gradient(flat), dtype=torch.float32).sum(1)
    assert torch.allclose(gradient(defense, x, weights), expected.reshape(x.shape), atol=1e-5)


@pytest.mark.parametrize("step", [Tensor.numpy, lambda images: images.detach().numpy()])
def test_a_function_that_computes_in_numpy_is_told_of_bpda(net, x, step):
    defense = defended(lambda images: torch.tensor(step(images) @ np.ones((4, 4), np.float32)).flatten(1)[:, :5])
    assert defense(x).shape == (6, 5)
    with pytest.raises(NotImplementedError, match=r"mb\.bpda"):
        gradient(defense, x, torch.ones(6, 5))


def preprocessor(returns=lambda images: (images, None)):
    """A preprocessor of ART whose gradient is not implemented."""
    from art.defences.preprocessor import Preprocessor

    class Mine(Preprocessor):
        def __call__(self, images, labels=None):
            return returns(images)

        def estimate_gradient(self, images, gradient):
            raise NotImplementedError

    return Mine()


def test_what_a_preprocessor_of_art_lacks_is_named(net, x):
    lacking = defended(art_classifier(net, preprocessor(), clip_values=(0.0, 1.0)))
    with pytest.raises(NotImplementedError, match=r"Mine\.estimate_gradient"):
        gradient(lacking, x, torch.ones(6, 5))
    with pytest.raises(ValueError, match=r"Mine\.__call__ of ART returned ndarray"):
        defended(art_classifier(net, preprocessor(lambda images: images), clip_values=(0.0, 1.0)))


class Divided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 255


def test_a_foolbox_model_for_other_bounds_gets_those(net, x):
    import foolbox

    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "axis": -3}
    plain = foolbox.PyTorchModel(net, bounds=(0, 1), preprocessing=preprocessing)
    same(defended(plain), lambda images: plain(images), x)
    scaled = foolbox.PyTorchModel(nn.Sequential(Divided(), net).eval(), bounds=(0, 255))
    same(defended(scaled), net, x)


def test_a_step_without_a_gradient_gets_one(x):
    def rounding(images: Tensor) -> Tensor:
        return images.mul_(15).round_().div_(15)  # in place: the caller's images must not change

    before = x.clone()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    assert torch.equal(bpda(rounding)(x), (before * 15).round() / 15)
    assert torch.equal(x, before)
    assert torch.equal(gradient(bpda(rounding), x, weights), weights)
    assert torch.allclose(gradient(bpda(rounding, torch.square), x, weights), 2 * x * weights)
    with pytest.raises(ValueError, match="shape"):
        bpda(lambda images: images.flatten(1))(x)
    with pytest.raises(TypeError, match="forward returned ndarray"):
        bpda(lambda images: images.numpy())(x)


def test_a_step_is_a_function_and_so_is_what_replaces_it(x):
    with pytest.raises(TypeError, match="forward is a Tensor"):
        bpda(x.round())
    with pytest.raises(TypeError, match="backward is a str"):
        bpda(torch.round, "identity")
