"""Models that don't answer as they should: the line says what to write, and what it says works."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import manifold_bench as mb
from manifold_bench.defenses.models import NEED_NO_GRADIENT, ModelSpec, as_defense, class_of, outputs_of
from manifold_bench.defenses.weights import freeze

SPEC = ModelSpec(shape=(3, 4, 4), num_classes=5)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


class Changed(nn.Module):
    """A model with other inputs, or other outputs."""

    def __init__(self, net: nn.Module, before=lambda x: x, after=lambda x: x) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor):
        return self.after(self.net(self.before(x)))


def only(size: int):
    def before(x: Tensor) -> Tensor:
        return x.reshape(size, 3, 4, 4)

    return before


ANSWERS = {
    "tuple": (lambda o: (o, o), "model(x)[0]"),
    "list with the logits last": (lambda o: [o.sum(), o], "model(x)[1]"),
    "pair of logits and features": (lambda o: (o, o[:, :, None]), "2; give lambda x: model(x)[0]"),
    "dict": (lambda o: {"features": o, "logits": o}, "model(x)['logits']"),
    "labels": (lambda o: o.argmax(1), "not the classes"),
    "one number": (lambda o: o[:, 0], "torch.stack([-model(x).flatten(), model(x).flatten()], 1)"),
    "one column": (lambda o: o[:, :1], "torch.stack([-model(x).flatten(), model(x).flatten()], 1)"),
    "array": (lambda o: o.detach().numpy(), "in torch"),
    "pixels": (lambda o: o[:, :, None, None], "model(x).flatten(1)"),
    "nothing": (lambda o: None, "NoneType"),
    "one image": (lambda o: o[:1], "number of classes"),
    "other classes": (lambda o: o[:, :4], "4 outputs for 5 classes"),
    "sparse": (lambda o: o.to_sparse(), "to_dense()"),
    "nested": (lambda o: torch.nested.nested_tensor(list(o)), "to_dense()"),
    "nowhere": (lambda o: o.to("meta"), "meta"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_outputs_that_are_no_logits(net, case):
    after, advice = ANSWERS[case]
    with pytest.raises(ValueError) as caught:
        as_defense(Changed(net, after=after), SPEC)
    assert advice in str(caught.value) and "\n" not in str(caught.value)


REJECTING = {
    "bool": (lambda o: (o, o[:, 0] > o[:, 0].median()), "found[0]", "0.5 - found[1].float()"),
    "number": (lambda o: (o, o.amax(1)), "found[0]", "found[1] - threshold"),
    "column first": (lambda o: (o.amax(1, keepdim=True), o), "found[1]", "found[0] - threshold"),
    "dict": (
        lambda o: {"logits": o, "accepted": o[:, 0] > o[:, 0].median()},
        "found['logits']",
        "0.5 - found['accepted'].float()",
    ),
}


@pytest.mark.parametrize("case", REJECTING)
def test_a_model_that_says_apart_what_it_rejects_is_told_how_to_keep_that(net, x, case):
    after, logits, excess = REJECTING[case]
    model = Changed(net, after=after)
    with pytest.raises(ValueError) as caught:
        as_defense(model, replace(SPEC, rejects=True))
    message = str(caught.value)
    assert f"mb.append_reject_score({logits}, excess)" in message and excess in message

    def joined(x: Tensor) -> Tensor:
        names = {"found": model(x), "threshold": 0.1}
        return mb.append_reject_score(eval(logits, names), eval(excess, names).flatten())

    rejected = as_defense(joined, replace(SPEC, rejects=True)).verdict(x).rejected
    first = net(x)[:, 0]
    score = first <= first.median() if "float" in excess else net(x).amax(1) > 0.1
    assert torch.equal(rejected, score) and 0 < rejected.sum() < 6


def test_classes_in_place_of_outputs_name_the_way_to_reject(net):
    with pytest.raises(ValueError, match=r"mb\.append_reject_score\(logits, excess\).*rejects=True"):
        as_defense(Changed(net, after=lambda o: torch.full_like(o.argmax(1), -1)), SPEC)
    with pytest.raises(ValueError, match=r"mb\.append_reject_score\(logits, excess\)"):
        as_defense(net, replace(SPEC, rejects=True))


def test_an_excess_has_one_value_for_each_image(net, x):
    with pytest.raises(ValueError, match="excess"):
        mb.append_reject_score(net(x), torch.zeros(6, 1))
    with pytest.raises(ValueError, match="bools have no gradient"):
        mb.append_reject_score(net(x), torch.zeros(6, dtype=torch.bool))


@pytest.mark.parametrize(
    ("before", "advice"),
    [
        (lambda x: x.reshape(len(x), 48) if x.ndim == 2 else x[..., 99], "nn.Flatten()"),
        (lambda x: x if x.shape[3] == 3 else x[..., 99], "x.permute(0, 2, 3, 1)"),
        (lambda x: x if len(x) == 1 else x[99], "image[None]"),
        (lambda x: x[None] if x.ndim == 3 else x[99], "model(image)"),
        (only(16), "16 images alone"),
    ],
)
def test_inputs_that_a_model_does_not_take(net, before, advice):
    with pytest.raises(ValueError) as caught:
        as_defense(Changed(net, before=before), SPEC)
    assert advice in str(caught.value) and "\n" not in str(caught.value)


def test_the_advice_for_flat_images_works_for_a_function(net):
    def flat(x: Tensor) -> Tensor:
        return net[1](x.reshape(len(x), 48) if x.ndim == 2 else x[..., 99])

    with pytest.raises(ValueError, match=r"lambda x: model\(x.flatten\(1\)\)"):
        as_defense(flat, SPEC)
    as_defense(lambda x: flat(x.flatten(1)), SPEC)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions(net, dtype):
    with pytest.raises(ValueError, match=r"model\.float\(\)"):
        as_defense(net.to(dtype), SPEC)
    as_defense(net.float(), SPEC)


def test_weights_that_are_not_there(net):
    with pytest.raises(ValueError, match="meta"):
        as_defense(net.to("meta"), SPEC)


def test_wrappers_of_modules_are_taken_off(net, x):
    for model in (nn.DataParallel(net), torch.compile(net), torch.compile(nn.DataParallel(net))):
        assert torch.equal(as_defense(model, SPEC)(x), net(x))


def other_answers(module: nn.Module, given: object, answers: Tensor) -> Tensor:
    """A hook after which the answers are others."""
    return answers.roll(1, 1)


class Rolled(nn.DataParallel):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).roll(1, 1)


class Alike(nn.Module):
    """Has its network under the name that torch.compile uses."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._orig_mod = net

    def forward(self, x: Tensor) -> Tensor:
        return self._orig_mod(x).roll(1, 1)


@pytest.mark.parametrize("kind", [nn.DataParallel, Rolled, Alike])
def test_what_a_wrapper_computes_itself_is_part_of_the_model(net, x, kind):
    model = kind(net)
    if kind is nn.DataParallel:
        model.register_forward_hook(other_answers)
    assert torch.equal(as_defense(model, SPEC)(x), net(x).roll(1, 1))


def test_hooks_of_torchscript_which_no_copy_has_are_refused(net, x):
    traced = torch.jit.trace(net, x)
    traced.register_forward_hook(other_answers)
    with pytest.raises(TypeError, match="hooks"):
        as_defense(traced, SPEC)


WRAPPED = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


class Wrapping(nn.Module):
    """A module of a notebook: its constructor names the global network that it wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = WRAPPED

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_a_class_may_name_the_network_that_it_wraps(x):
    assert torch.equal(as_defense(Wrapping(), SPEC)(x), WRAPPED(x))


def test_a_model_whose_copy_answers_otherwise_is_refused(net):
    class Copied(Alike):
        def __deepcopy__(self, memo: object) -> nn.Module:
            return self._orig_mod

    with pytest.raises(ValueError, match="__deepcopy__"):
        as_defense(Copied(net), SPEC)


def test_a_frozen_model_has_gradients_in_its_images(net, x):
    defense = as_defense(net.requires_grad_(False), SPEC)
    images = x.clone().requires_grad_()
    assert torch.autograd.grad(defense(images).sum(), images)[0].any()


@pytest.mark.parametrize("without", [torch.no_grad(), torch.inference_mode()])
def test_a_model_without_a_gradient_answers_and_says_so_where_one_is_needed(net, x, without):
    defense = as_defense(without(net.forward), SPEC)
    assert torch.equal(defense(x), net(x))
    with pytest.raises(NotImplementedError, match="no gradient"):
        defense(x.clone().requires_grad_())


def test_trying_a_model_leaves_it_as_it_is():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert outputs_of(net, (3, 4, 4)) == 5
    planned = class_of(net, "net", __name__)(SPEC)
    for module in (net, planned.model):
        assert all(part.training for part in module.modules())
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(part.training for part in freeze(planned).modules())


SHORT = {"square": {"queries": 3}, "spsa": {"steps": 1, "pairs": 1}, "art:HopSkipJump": {"max_iter": 1}}


@pytest.mark.parametrize("name", NEED_NO_GRADIENT.split(", "))
def test_attacks_that_are_named_for_models_without_gradients_work_on_them(net, x, name):
    def without(images: Tensor) -> Tensor:
        with torch.no_grad():
            return net(images)

    for norm in ("linf", "l2"):
        found = mb.attack(name, without, (x[:2], net(x[:2]).argmax(1)), norm=norm, eps=0.1, **SHORT[name])
        assert found.adversarial.shape == x[:2].shape
