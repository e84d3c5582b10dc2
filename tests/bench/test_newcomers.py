"""What somebody meets who is here for the first time: commands that can be run as they stand, and faults by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import manifold_bench as mb
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.reading import parse_matrix

GENERATOR = torch.Generator().manual_seed(5)
DATA = (torch.rand(8, 1, 8, 8, generator=GENERATOR), torch.arange(8))


def rejecting(x: Tensor) -> Tensor:
    return torch.cat([x.flatten(1)[:, :10], x.mean((1, 2, 3), keepdim=True).flatten(1)], 1)


def noisy(x: Tensor) -> Tensor:
    return (x + 0.1 * torch.randn_like(x)).flatten(1)[:, :10]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A matrix that takes the place of `strong`."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        'datasets = [{ name = "digits", n = 4 }]\ndefenses = ["undefended"]\n'
        'attacks = [{ name = "noise", eps = [0.1] }]\n'
    )
    return path


USED = [
    (rejecting, {"rejects": True}),
    (rejecting, {"rejects": True, "normalize": (0.5, [0.5])}),
    (noisy, {"randomized": True, "draws": 3}),
]


@pytest.mark.parametrize(("model", "used"), USED)
@pytest.mark.parametrize("data", ["digits", DATA])
def test_the_command_of_a_verdict_uses_the_model_in_the_same_way(tiny, model, used, data):
    options = {} if isinstance(data, tuple) else {"n": 4}
    found = mb.evaluate(model, data, attacks=[{"name": "noise", "draws": 2}], eps=[0.1], **options, **used)
    command = found.assessment.splitlines()[-1].strip()
    assert "…" not in command
    line = command.replace('"strong"', repr(str(tiny))).replace("diagnose=True", "diagnose=False")
    again = eval(line, {"mb": mb, "model": model, "data": DATA})
    (before,), (after,) = (one.stored.run["matrix"]["defenses"] for one in (found, again))
    for key in ("parameters", "draws", "randomized"):
        assert before[key] == after[key]
    assert set(after["parameters"]) | {"draws", "randomized"} >= set(used)


@pytest.mark.parametrize("name", ["rejects", "randomized", "draws", "normalize"])
def test_run_says_where_settings_of_a_model_go(name):
    with pytest.raises(InputError, match=rf"^{name}: .*\"{name}\": "):
        mb.run("quick", defenses={"mine": rejecting}, **{name: 3})


@pytest.mark.parametrize(
    ("table", "key"),
    [({"rejects": True}, "model"), ({"model": noisy, "draw": 3}, "draw"), ({"model": noisy, "draws": 3}, "draws")],
)
def test_settings_of_a_model_are_checked(tiny, table, key):
    with pytest.raises(InputError, match=key):
        mb.run(tiny, defenses={"mine": table})


@pytest.mark.parametrize("data", ["digits", DATA])
def test_a_model_that_returns_nan_is_refused(data):
    for used in ({}, {"normalize": (0.5, 0.5)}):
        with pytest.raises(InputError, match="NaN"):
            mb.evaluate(lambda x: torch.nan * x.flatten(1)[:, :10], data, attacks=["noise"], eps=0.1, **used)


def test_where_every_attack_failed_the_verdict_gives_the_reason_and_recommends_nothing():
    def broken(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10].detach()

    found = mb.evaluate(broken, DATA, attacks=["fgsm"], eps=0.1)
    assert set(found.summary.query("kind != 'clean'")["status"]) == {"failed"}
    assert "no gradient" in found.assessment and "mb." not in found.assessment.splitlines()[-1]


@pytest.mark.parametrize(
    ("key", "meant"), [("defences", "defenses"), ("atacks", "attacks"), ("data_sets", "datasets"), ("sed", "seed")]
)
def test_an_unknown_key_is_named_before_a_missing_one(key, meant):
    raw = {"datasets": ["digits"], "defenses": ["undefended"], "attacks": [{"name": "noise", "eps": [0.1]}]}
    raw[key] = raw.pop(meant, 3)
    with pytest.raises(InputError, match=f"test: {key}: unknown key; did you mean '{meant}'"):
        parse_matrix(raw, "test")


class Sometimes(torch.nn.Module):
    """A model that returns NaN for dark images: on those of the data, and not on random ones."""

    def forward(self, x: Tensor) -> Tensor:
        dark = x.mean((1, 2, 3)) < 0.3
        return torch.where(dark[:, None], torch.nan, x.flatten(1)[:, :10])


DARK = (0.2 * DATA[0], DATA[1])


def test_a_model_that_returns_nan_on_some_images_fails_alone_and_by_name(tiny):
    found = mb.run(tiny, defenses={"sometimes": Sometimes(), "noisy": noisy}, attack=["noise", "fgsm"], n=4)
    states = found.summary.groupby("defense")["status"].unique()
    assert list(states["sometimes"]) == ["failed"] and list(states["noisy"]) == ["ok"]
    assert found.records.query("defense == 'sometimes'")["reason"].str.contains("Sometimes.*NaN").all()
    notes = [one for one in found.notes if "NaN" in one]
    assert [one.count("NaN") for one in notes] == [1, 1]  # the reason once for both attacks, and once without an attack
    assert sum("the clean pass of this defense failed" in one for one in notes) == 1


def test_an_attack_on_it_fails_in_one_line():
    for attack in ("noise", "fgsm"):
        with pytest.raises(InputError, match=f"attack '{attack}' on Sometimes .*NaN") as caught:
            mb.attack(attack, Sometimes(), DARK, eps=0.1)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("n", "said"), [(1, False), (4, False), (8, True), (24, True)])
def test_few_images_tell_nothing_of_guesses(n, said):
    """A model that names the same class for each of n images of two classes."""
    images, labels = torch.rand(n, 1, 2, 2), torch.arange(n) % 2
    found = mb.evaluate(
        lambda x: x.flatten(1)[:, :2] * 0 + torch.tensor([1.0, 0.0]), (images, labels), attacks=["noise"], eps=0.1
    )
    clean = found.records[found.records["kind"] == "clean"]
    assert clean["reason"].str.contains("guesses").eq(said).all()
    assert not clean["reason"].str.contains("numbered").any()


@pytest.mark.parametrize(("outputs", "said"), [(2, False), (3, True), (9, True)])
def test_outputs_that_are_no_class_are_noted(outputs, said):
    images, labels = torch.rand(24, 1, 2, 2), torch.arange(24) % 2
    found = mb.evaluate(
        lambda x: F.pad(x.flatten(1)[:, :2], (0, outputs - 2)), (images, labels), attacks=["noise"], eps=0.1
    )
    reasons = found.records.loc[found.records["kind"] == "clean", "reason"]
    assert reasons.str.contains(f"it has {outputs} outputs, but no label").eq(said).all()


def test_a_model_of_others_hears_that_it_may_have_seen_the_images():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    found = mb.evaluate(model, "mnist5k", n=8, attacks=["noise"], eps=0.1)
    assert found.records["reason"].str.contains("a model trained on MNIST has seen them").any()
