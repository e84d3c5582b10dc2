"""Arguments of the Python interface: what cannot be used is refused in one line, and numbers may be any library's."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import manifold_bench as mb
from manifold_bench.bench.api.options import EVALUATION, EvaluationOptions
from manifold_bench.bench.text import norm_of

REFUSED: dict[str, tuple[dict, str]] = {
    "attacks that are none": ({"attacks": None}, "attacks"),
    "a number as an attack": ({"attacks": [3]}, "attacks"),
    "an object as a parameter": ({"attacks": [{"name": "pgd", "steps": object()}]}, "object"),
    "no draws": ({"draws": 0, "randomized": True}, "draws"),
    "one number to normalize with": ({"normalize": 0.5}, "normalize"),
    "three numbers to normalize with": ({"normalize": (0.5, 0.5, 0.5)}, "normalize"),
    "means of two channels": ({"normalize": ((0.1, 0.2), 0.5)}, "normalize"),
    "a deviation of 0": ({"normalize": (0.5, torch.tensor(0.0))}, "normalize"),
    "one number in a tuple": ({"normalize": (0.5,)}, "(mean, standard deviation)"),
    "a text to normalize with": ({"normalize": ("a", 1)}, "normalize"),
    "nothing as a parameter": ({"attacks": [{"name": "pgd", "steps": None}]}, "steps"),
    "a table as a parameter": ({"attacks": [{"name": "pgd", "steps": {"a": 1}}]}, "steps"),
    "a parameter with a space": ({"attacks": [{"name": "pgd", "st eps": 1}]}, "did you mean 'steps'"),
    "a norm that is none": ({"norm": "l7"}, "'linf', 'l2'"),
    "no norm": ({"norm": None}, "norm"),
    "a budget in words": ({"budget": "10 minutes"}, "90s, 30min or 2h"),
    "a budget without a unit": ({"budget": 600}, "90s, 30min or 2h"),
    "more images than there are": ({"n": 4000}, "32 test images"),
    "a size that is no fraction": ({"eps": "8 of 256"}, "8/255"),
    "a size in grey levels": ({"eps": 8}, '"8/255"'),
    "a number of classes that the data set has": ({"data": "digits", "classes": 7}, "classes"),
    "a text in place of False": ({"rejects": "False"}, "True or False"),
    "a number in place of True": ({"randomized": 2}, "True or False"),
    "True as a number of images": ({"n": True}, "n: True is not allowed"),
    "True as a seed": ({"seed": True}, "seed: True is not allowed"),
    "bytes as a size": ({"eps": b"0.1"}, '"8/255"'),
    "a size just above the largest": ({"eps": 1.0000001}, "1.0000001 is no L∞ size"),
    "a norm below zero": ({"norm": float("-inf")}, "norm"),
    "a text as a switch": ({"diagnose": "yes"}, "diagnose: 'yes' is not allowed; give True or False"),
    "no classes": ({"classes": 0}, "classes: 0 is not allowed"),
    "half a class": ({"classes": 9.5}, "classes: 9.5 is not allowed"),
    "an empty text as a folder": ({"out": ""}, "out: is empty"),
    "two numbers of images": ({"n": [8, 16]}, "one value"),
    "two numbers of workers": ({"workers": [0, 2]}, "one value"),
    "a table as a folder": ({"out": {"a": 1}}, "out: expected the path of a folder, not dict"),
    "epsilon": ({"epsilon": 0.1}, "did you mean 'eps'"),
    "epsilons": ({"epsilons": [0.1]}, "did you mean 'eps'"),
    "eps_list": ({"eps_list": [0.1]}, "did you mean 'eps'"),
    "attack": ({"attack": "pgd"}, "did you mean 'attacks'"),
    "a data set besides": ({"dataset": "digits"}, "dataset"),
    "a defense that has to be trained": ({"model": "undefended"}, "give a model that is trained already"),
}

MISSPELT = {
    "epsilon": "eps",
    "epsilons": "eps",
    "eps_list": "eps",
    "step": "steps",
    "step_sise": "step_size",
    "iterations": "steps",
    "nb_iter": "steps",
    "alpha": "step_size",
}


@pytest.mark.parametrize("key", MISSPELT)
def test_a_misspelt_name_is_answered_with_the_right_one(linear, interior, key):
    meant = f"did you mean '{MISSPELT[key]}'"
    own = {} if MISSPELT[key] == "eps" else {"eps": 0.1}
    with pytest.raises(mb.InputError, match=meant):
        mb.attack("pgd", linear, interior, **own, **{key: 3})
    with pytest.raises(mb.InputError, match=meant):
        mb.evaluate(linear, interior, attacks=[{"name": "pgd", key: 3}], eps=0.1)
    if MISSPELT[key] == "eps":
        with pytest.raises(mb.InputError, match=meant):
            mb.evaluate(linear, interior, **{key: 0.1})


@pytest.mark.parametrize("norm", ["Linf", "L∞", "l_inf", "inf", "L-Inf", np.inf, "linf", float("inf")])
def test_a_norm_may_be_written_in_the_usual_ways(linear, interior, norm):
    found = mb.evaluate(linear, interior, attacks=["noise"], norm=norm, eps=0.1)
    assert set(found.table["norm"]) == {"linf"}
    assert mb.attack("noise", linear, interior, norm=norm, eps=0.1).distance.max() <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("given", "name"),
    [("L2", "l2"), (2, "l2"), ("l_2", "l2"), (1, "l1"), ("L1", "l1"), ("L0", "l0"), (0, "l0"), (2.0, "l2")],
)
def test_other_norms(given, name):
    assert norm_of(given) == norm_of(name) == name


@pytest.mark.parametrize("given", ["", "l", "L3", "unrestricted", "fooling", None, True, "linfinite"])
def test_what_is_no_other_way_to_write_a_norm_stays(given):
    assert norm_of(given) == given


def test_labels_from_1_are_answered_with_what_to_subtract(linear, interior):
    labels = torch.arange(32) % 10 + 1
    for given in ({}, {"classes": 10}):
        with pytest.raises(mb.InputError, match="labels - 1"):
            mb.evaluate(linear, (interior[0], labels), attacks=["noise"], eps=0.1, **given)
    with pytest.raises(mb.InputError, match="labels - 1"):
        mb.attack("noise", linear, (interior[0], labels), eps=0.1)


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_cannot_be_used_are_refused_in_one_line(linear, interior, case):
    given, named = REFUSED[case]
    with pytest.raises(mb.InputError) as caught:
        mb.evaluate(**{"model": linear, "data": interior, "attacks": ["noise"], "eps": 0.1} | given)
    assert named in str(caught.value) and "\n" not in str(caught.value)


PIXELS = torch.rand(16, 1, 8, 8)
CONTENT = {"tensor": PIXELS, "array": PIXELS.numpy(), "pair": (PIXELS, torch.arange(16)), "list": [PIXELS, PIXELS]}


def is_short(call, key):
    """Check that a call raises InputError with one short line that names a key and shows no pixels."""
    with pytest.raises(mb.InputError) as caught:
        call()
    text = str(caught.value)
    assert key in text and "\n" not in text and len(text) < 250 and f"{float(PIXELS[0, 0, 0, 0]):.4f}"[:6] not in text


@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("key", ["dataset", "data", "attack", "defense", "n", "norm", "eps", "seed", "out", "budget"])
def test_images_in_place_of_an_option_of_a_run_are_not_shown(linear, content, key):
    given = {"dataset": "digits", "dry_run": True} | {key: CONTENT[content]}
    is_short(lambda: mb.run("smoke", defenses={"mine": linear}, **given), key)


@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("key", [*("attacks", "norm", "eps", "normalize", "rejects", "draws", "classes", "n", "out")])
def test_images_in_place_of_an_option_of_an_evaluation_are_not_shown(linear, interior, content, key):
    given = {"attacks": ["noise"], "eps": 0.1} | {key: CONTENT[content]}
    is_short(lambda: mb.evaluate(linear, interior, **given), key)
    is_short(
        lambda: mb.evaluate(linear, interior, attacks=[{"name": "pgd", "steps": CONTENT[content]}], eps=1), "steps"
    )
    is_short(lambda: mb.attack("pgd", linear, interior, eps=0.1, steps=CONTENT[content]), "steps")


@pytest.mark.parametrize("content", CONTENT)
def test_images_in_place_of_a_name_are_not_shown(linear, interior, content):
    is_short(lambda: mb.run(CONTENT[content]), "matrix")
    is_short(lambda: mb.attack(CONTENT[content], linear, interior, eps=0.1), "name")
    is_short(lambda: mb.evaluate(CONTENT[content], interior, eps=0.1), "model")
    is_short(lambda: mb.run("smoke", defenses={"mine": CONTENT[content]}), "mine")


@pytest.mark.parametrize(
    ("call", "written"),
    [
        (lambda model, x, y: mb.attack("pgd", model, x, y, eps=0.1), "mb.attack("),
        (lambda model, x, y: mb.evaluate(model, x, y, eps=0.1), "mb.evaluate("),
        (lambda model, x, y: mb.evaluate(model, (x, y), eps=0.1, data="folder"), "MANIFOLD_BENCH_DATA"),
        (lambda model, x, y: mb.evaluate(model), "mb.evaluate("),
        (lambda model, x, y: mb.run("quick", {"mine": model}), "mb.run("),
        (lambda model, x, y: mb.as_defense(model, (1, 8, 8)), "mb.as_defense("),
    ],
)
def test_arguments_in_wrong_places_are_answered_with_a_call(linear, interior, call, written):
    with pytest.raises(mb.InputError) as caught:
        call(linear, *interior)
    assert written in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"), [("eps", 0.1), ("address", "here:1"), ("data", "no folder"), ("device", "abacus"), ("n", 4000)]
)
def test_messages_of_a_run_name_options_as_a_program_writes_them(linear, option, value):
    with pytest.raises(mb.InputError) as caught:
        mb.run("strong", defenses={"mine": linear}, **{"dataset": "digits", "n": 4, "dry_run": True, option: value})
    assert option in str(caught.value) and "--" not in str(caught.value)


def test_editors_know_every_option_of_an_evaluation():
    assert {*EvaluationOptions.__annotations__, "attacks", "norm", "eps"} == set(EVALUATION)


def test_the_folder_of_data_files_is_no_option_of_an_evaluation(linear, interior, monkeypatch):
    with pytest.raises(mb.InputError) as caught:
        mb.evaluate(linear, interior, eps=0.1, dats=1)
    assert "data" not in str(caught.value).rpartition("there are ")[2].split(", ")
    monkeypatch.delenv("MANIFOLD_BENCH_DATA", raising=False)
    with pytest.raises(mb.InputError, match="environment variable MANIFOLD_BENCH_DATA"):
        mb.evaluate(linear, "mnist", eps=0.1)


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))


class Sized(Net):
    def __init__(self, classes):
        super().__init__()


def test_a_class_or_function_without_arguments_is_called_as_on_the_command_line(interior):
    for model in (Net, lambda: Net()):
        assert mb.attack("noise", model, interior, eps=0.1).success.shape == (32,)
        assert mb.as_defense(model, (1, 8, 8), 10)(interior[0]).shape == (32, 10)
    assert (
        mb.run("smoke", defenses={"mine": {"model": Net}}, dataset="digits", n=2, attack="noise", dry_run=True) is None
    )
    net = Net()
    assert mb.as_defense(lambda *images: net(*images), (1, 8, 8), 10)(interior[0]).shape == (32, 10)
    for call in (
        lambda: mb.evaluate(Sized, interior, eps=0.1),
        lambda: mb.run("smoke", defenses={"sized": Sized}),
        lambda: mb.as_defense(Sized, (1, 8, 8), 10),
    ):
        with pytest.raises(mb.InputError, match="Sized takes arguments"):
            call()
    with pytest.raises(mb.InputError, match=r"\(Net, \"net.safetensors\"\)"):
        mb.evaluate(("net.safetensors", Net), interior, eps=0.1)


@pytest.mark.parametrize("key", ["n", "label", "ladder", "datasets", "defenses"])
def test_options_of_a_run_are_none_of_one_attack(linear, interior, key):
    with pytest.raises(mb.InputError, match=f"{key}: no such option"):
        mb.attack("pgd", linear, interior, eps=0.1, **{key: 5})


def test_a_text_is_neither_true_nor_false_wherever_a_model_is_given(linear):
    with pytest.raises(mb.InputError, match="True or False"):
        mb.run("smoke", defenses={"mine": {"model": linear, "randomized": "False"}})
    with pytest.raises(mb.InputError, match="True or False"):
        mb.as_defense(linear, (1, 8, 8), 10, randomized="False")


@pytest.mark.parametrize("folder", [None, 5, "", []])
def test_what_is_no_path_is_no_folder_of_a_run(folder):
    with pytest.raises(mb.InputError, match="folder: "):
        mb.load(folder)


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(mb.InputError):
        mb.run("smoke", defense="none of that name")
    assert not list(tmp_path.iterdir())


def test_a_working_folder_that_is_gone_is_no_error(linear, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert mb.as_defense(linear, (1, 8, 8), 10)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_parameters_may_be_numbers_of_any_library(linear, interior):
    attacks = [{"name": "pgd", "steps": np.int64(3), "step_size": torch.tensor(0.125)}]
    usage = {"normalize": (torch.tensor([0.5]), np.float32(0.25)), "attacks": attacks, "eps": 0.1}
    plain = {"normalize": (0.5, 0.25), "attacks": [{"name": "pgd", "steps": 3, "step_size": 0.125}], "eps": 0.1}
    usage |= {"n": torch.tensor(8), "classes": np.int64(10), "seed": np.array(3)}
    plain |= {"n": 8, "classes": 10, "seed": 3}
    found, same = mb.evaluate(linear, interior, **usage), mb.evaluate(linear, interior, **plain)
    assert found.table["robust"].tolist() == same.table["robust"].tolist()


def test_labels_beyond_the_models_classes_are_refused(interior):
    three = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(mb.InputError, match="has 3 classes"):
        mb.evaluate(three, (interior[0], torch.arange(32) % 4), attacks=["noise"], eps=0.1)


NO_SIZES = [None, [], {}, True, [0.1, True], [None], float("nan"), [0.1, float("inf")], object()]


@pytest.mark.parametrize("eps", [*NO_SIZES, 8, ["8"], np.array([0.1, 4])])
def test_what_is_no_size_of_a_perturbation_is_refused(linear, interior, eps):
    for call in (mb.evaluate, partial(mb.attack, "noise")):
        with pytest.raises(mb.InputError, match="eps"):
            call(linear, interior, eps=eps)


def test_a_missing_size_is_named():
    with pytest.raises(mb.InputError, match=r"eps: .*8/255"):
        mb.evaluate("undefended", "digits")


def test_a_size_larger_than_the_box_is_refused(linear, interior):
    for call in (mb.evaluate, partial(mb.attack, "fgsm")):
        with pytest.raises(mb.InputError, match=r"9/255"):
            call(linear, interior, norm="l2", eps=9)


@pytest.mark.parametrize("eps", [np.float32(0.125), np.float64(0.125), torch.tensor(0.125), np.array([0.125]), "1/8"])
def test_a_size_may_be_a_number_of_any_library(linear, interior, eps):
    result = mb.evaluate(linear, interior, attacks=["noise"], eps=eps)
    assert list(result.table["eps"]) == [0.125]


def test_one_defense_of_a_matrix_may_be_named_next_to_models_that_are_handed_over(linear, monkeypatch):
    given: list[str] = []

    def note(arguments: Namespace, temporary: bool) -> None:
        given.extend(arguments.defense)
        raise mb.InputError("noted")

    monkeypatch.setattr("manifold_bench.bench.api.functions.start", note)
    with pytest.raises(mb.InputError, match="noted"):
        mb.run("smoke", defenses={"mine": linear}, defense="undefended")
    assert given == ["mine", "undefended"]


@pytest.mark.parametrize(
    ("given", "begins"),
    [
        ({"eps": -0.1}, "eps: "),
        ({"eps": [0.1, -2]}, "eps: "),
        ({"norm": "l3", "eps": 0.1}, "norm: "),
        ({"eps": 0.1, "attacks": [{"name": "pgd", "eps": -1}]}, "attacks[0].eps"),
        ({"eps": 0.1, "data": "digit"}, "unknown data set 'digit'"),
    ],
)
def test_a_message_names_the_argument_that_was_given(given, begins):
    with pytest.raises(mb.InputError) as found:
        mb.evaluate(**{"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "data": "digits"} | given)
    assert str(found.value).startswith(begins)
