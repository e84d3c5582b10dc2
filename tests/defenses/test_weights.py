"""Weights files: what comes back is what was saved, or an error that names the file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.bench.datasets.fashion_mnist import FashionMnist
from manifold_bench.bench.datasets.mnist import Mnist, Mnist5k
from manifold_bench.defenses import weights
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.gmvae import GaussianMixtureVAE
from manifold_bench.defenses.identity import TRAINABLE, registered, system
from manifold_bench.defenses.undefended import Undefended
from manifold_bench.defenses.weights import (
    ZOO,
    Card,
    WeightsError,
    freeze,
    load_into,
    read_card,
    save,
    spec_json,
    weights_hash,
)

REVISIONS = {
    "coil100": "coil100-c583eb9508fe/split-1",
    "digits": Digits.revision,
    "fashion-mnist": FashionMnist.revision,
    "mnist": Mnist.revision,
}
"""Of the data that the zoo's weights are trained on."""


SPEC = Undefended.Spec(shape=(1, 8, 8), num_classes=3, width=2, hidden=4)


def small(seed: int = 0, spec=SPEC) -> Undefended:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Undefended(spec)


def card_of(defense: Undefended) -> Card:
    own = system(type(defense), *TRAINABLE)
    return Card(
        name=own.name,
        source_sha256=own.source_sha256,
        version=1,
        spec=spec_json(defense.spec),
        data="digits",
        revision="r",
        seed=0,
        budget=1.0,
        command="…",
        code="…",
        torch=torch.__version__,
        figures={"validation_accuracy": 0.5},
        weights_sha256=weights_hash(defense),
        notes={"more": [1, 2]},
    )


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "digits--undefended.safetensors"
    save(small(), card_of(small()), path)
    return path


def test_what_is_loaded_is_what_was_saved(saved):
    written = sorted(path.name for path in saved.parent.iterdir())
    assert written == ["digits--undefended.json", "digits--undefended.safetensors"]
    card = read_card(saved)
    assert card == card_of(small())
    loaded = small(seed=1)
    load_into(loaded, saved, card.weights_sha256)
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(loaded(x), freeze(small())(x))  # frozen, too: some processors choose other kernels for gradients
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_every_weight_name_type_and_shape_is_in_the_hash():
    base = weights_hash(small())
    assert base == weights_hash(small()) and base != weights_hash(small(seed=1))
    for name, _ in small().named_parameters():
        changed = small()
        value = changed.get_parameter(name).data
        flat = value.view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf))
        assert weights_hash(changed) != base, name
    renamed = small()
    renamed.other = renamed.network
    del renamed.network
    assert weights_hash(renamed) != base
    assert weights_hash(small().double()) != base
    reshaped = small()
    reshaped.network.output.bias.data = reshaped.network.output.bias.data.view(1, -1)
    assert weights_hash(reshaped) != base
    buffered = GaussianMixtureVAE(GaussianMixtureVAE.Spec(shape=(1, 8, 8), num_classes=3, latent=3, width=2, hidden=4))
    before = weights_hash(buffered)
    buffered.tau_dec = torch.tensor(1.0)
    assert weights_hash(buffered) != before


def broken(path: Path, expected: str = "") -> str:
    """The message of loading it; every fault is a WeightsError of one line that names the file."""
    with pytest.raises(WeightsError) as caught:
        load_into(small(seed=1), path, expected or read_card(path).weights_sha256)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("place", [0, 7, 8, 20, -1, -40])
def test_a_flipped_byte_is_noticed(saved, place):
    raw = bytearray(saved.read_bytes())
    raw[place] ^= 0x01
    saved.write_bytes(raw)
    broken(saved)


@given(place=st.integers(min_value=0), mask=st.integers(1, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_byte_is_noticed_or_changes_nothing(tmp_path_factory, place, mask):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    if not path.with_suffix(".json").exists():
        save(small(), card_of(small()), path)
        path.with_suffix(".whole").write_bytes(path.read_bytes())
    raw = bytearray(path.with_suffix(".whole").read_bytes())
    raw[place % len(raw)] ^= mask
    path.write_bytes(raw)
    loaded = small(seed=1)
    try:
        load_into(loaded, path, read_card(path).weights_sha256)
    except WeightsError as error:
        assert str(path) in str(error)
    else:
        assert weights_hash(loaded) == weights_hash(small())


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_noticed(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    broken(saved)


def test_a_missing_file_is_named(saved):
    saved.unlink()
    broken(saved, "0" * 64)


def test_a_folder_in_its_place_is_named(saved):
    saved.unlink()
    saved.mkdir()
    broken(saved, "0" * 64)


def test_weights_of_another_network_are_refused(saved):
    other = small(spec=replace(SPEC, hidden=5))
    save(other, card_of(other), saved)
    broken(saved)
    gmvae = GaussianMixtureVAE(GaussianMixtureVAE.Spec(shape=(1, 8, 8), num_classes=3, latent=3, width=2, hidden=4))
    save(gmvae, card_of(small()), saved)
    broken(saved)


def test_weights_of_the_same_network_with_another_hash_are_refused(saved):
    assert "expected 000000000000" in broken(saved, "0" * 64)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"\xff\xfe", b'{"name": "x"}', b'"text"'],
    ids=["missing", "empty", "cut", "list", "bytes", "incomplete", "text"],
)
def test_a_card_that_cannot_be_read_is_named(saved, content):
    card = saved.with_suffix(".json")
    card.unlink() if content is None else card.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_card(saved)
    assert str(card) in str(caught.value) and "\n" not in str(caught.value)


def test_a_save_that_is_interrupted_leaves_no_card_to_believe(saved, monkeypatch):
    monkeypatch.setattr(weights, "atomic_save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(small(seed=1), card_of(small(seed=1)), saved)
    with pytest.raises(WeightsError):
        read_card(saved)


def test_the_zoo_names_what_it_has():
    with pytest.raises(WeightsError, match="'nonsense'"):
        weights.from_zoo("nonsense", "mnist")


def test_the_zoo_gives_a_defense_ready_to_use(saved, monkeypatch):
    monkeypatch.setattr(weights, "ZOO", saved.parent)
    defense = weights.from_zoo("undefended", "digits")
    assert isinstance(defense, Undefended) and defense.spec == SPEC and not defense.training
    assert weights_hash(defense) == weights_hash(small())


@dataclass(frozen=True, kw_only=True)
class ShiftedSpec(Undefended.Spec):
    shift: float = field(default=0.0, metadata={"deployment": True})


class Shifted(Undefended):
    """Undefended, with a setting of its answers that is no part of the training."""

    Spec = ShiftedSpec

    def forward(self, x):
        return super().forward(x) + self.spec.shift


def test_the_zoo_gives_a_defense_with_another_deployment(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ZOO", tmp_path)
    point = EntryPoint("Shifted", f"{__name__}:Shifted", "manifold_bench.defenses")
    monkeypatch.setitem(registered("defenses"), "Shifted", point)
    built = Shifted(ShiftedSpec(**vars(SPEC), shift=1.0))
    save(built, card_of(built), tmp_path / "digits--shifted.safetensors")
    x = torch.rand(3, 1, 8, 8)
    as_saved, other = weights.from_zoo("shifted", "digits"), weights.from_zoo("shifted", "digits", shift=5.0)
    assert as_saved.spec.shift == 1.0 and torch.allclose(other(x), as_saved(x) + 4)
    assert weights_hash(other) == weights_hash(as_saved) and not other.training
    with pytest.raises(ValueError, match="no deployment field 'width'; it has shift"):
        weights.from_zoo("shifted", "digits", width=3)
    with pytest.raises(ValueError, match="shift"):
        weights.from_zoo("shifted", "digits", shift="far")


def test_the_training_part_of_a_spec_leaves_the_deployment_out():
    spec = ShiftedSpec(**vars(SPEC), shift=1.0)
    assert weights.training_part(spec) == weights.training_part(ShiftedSpec(**vars(SPEC)))
    card, own, other = card_of(Shifted(spec)), system(Shifted, *TRAINABLE), system(Undefended, *TRAINABLE)
    assert weights.trained_as(card, own, replace(spec, shift=2.0), "digits", {})
    assert not weights.trained_as(card, own, replace(spec, rate=0.5), "digits", {})
    assert not weights.trained_as(card, other, SPEC, "digits", {})
    assert not weights.trained_as(card, own, spec, "mnist", {})
    for change in ({"version": 99}, {"source_sha256": None}, {"name": "other"}):
        assert not weights.trained_as(replace(card, **change), own, spec, "digits", {})


@pytest.mark.parametrize(("key", "value"), [("name", "nothing"), ("name", "gmvae"), ("spec", {"width": "many"})])
def test_a_card_that_says_nonsense_is_named(saved, monkeypatch, key, value):
    monkeypatch.setattr(weights, "ZOO", saved.parent)
    card = saved.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {key: value}))
    with pytest.raises(WeightsError, match="digits--undefended"):
        weights.from_zoo("undefended", "digits")


@pytest.mark.parametrize("path", sorted(ZOO.glob("*.safetensors")) or [None], ids=lambda p: p.stem if p else "empty")
def test_every_weights_file_of_the_zoo_is_whole_and_trained_on_what_its_card_says(path):
    if path is None:
        pytest.skip("the zoo is empty")
    data, name = path.stem.split("--")
    card = read_card(path)
    defense = weights.from_zoo(name, data)
    assert weights_hash(defense) == card.weights_sha256
    assert card.data == data
    # trained on the 55,000 images of `mnist`, never on the 5,000 of `mnist5k`, which are test data
    assert card.revision == REVISIONS[data] != Mnist5k.revision


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("inner"), "KeyError: 'inner'"),
        (ValueError("\n  first\nsecond"), "ValueError: first second"),
        (AssertionError(), "AssertionError"),
        (Wordless(), "Wordless"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_exception_has_a_reason_on_one_line(error, expected):
    assert one_line(error) == expected
    assert len(one_line(ValueError("word " * 1000))) <= 300
