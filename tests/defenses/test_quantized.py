"""Models whose weights are no plain tensors: quantized layers, TorchScript, libraries' models, and extra state."""

from __future__ import annotations

import io
import threading

import foolbox
import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

import manifold_bench as mb
from manifold_bench.bench.planning.registry import find
from manifold_bench.defenses.models import module_of
from manifold_bench.defenses.other_state import other_state_sha256
from manifold_bench.defenses.weights import ZOO, from_zoo, weights_hash

pytestmark = pytest.mark.filterwarnings("ignore")  # torch deprecates its own quantization


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval().requires_grad_(False)


def quantized(seed: int) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(network(seed), {nn.Linear})


def packed(seed: int) -> nn.Module:
    """Attributes with packed weights, as in a graph that torch.fx quantized."""
    module = Attribute(None)
    weight = torch.quantize_per_tensor(network(seed)[1].weight, 0.01, 0, torch.qint8)
    module.value = torch.ops.quantized.linear_prepack(weight, None)
    return module


def loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


def traced_function(seed: int) -> object:
    made = network(seed)
    return torch.jit.trace(lambda x: made(x), torch.zeros(1, 1, 8, 8))


class Attribute(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, x):
        return x.flatten(1)[:, :10]


class Extra(Attribute):
    def get_extra_state(self):
        return self.value

    def set_extra_state(self, state):
        self.value = state


MADE = {
    "quantized": quantized,
    "inside a module": lambda seed: nn.Sequential(quantized(seed), nn.Identity()),
    "packed": packed,
    "scripted": lambda seed: torch.jit.script(network(seed)),
    "loaded script": lambda seed: loaded(torch.jit.script(network(seed))),
    "traced": lambda seed: torch.jit.trace(network(seed), torch.zeros(1, 1, 8, 8)),
    "frozen script": lambda seed: torch.jit.freeze(torch.jit.script(network(seed))),
    "quantized script": lambda seed: torch.jit.script(quantized(seed)),
    "traced function": lambda seed: torch.jit.trace(network(seed).forward, torch.zeros(1, 1, 8, 8)),
    "foolbox": lambda seed: foolbox.PyTorchModel(network(seed), (0, 1)),
    "art": lambda seed: PyTorchClassifier(network(seed), nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1)),
    "sparse attribute": lambda seed: Attribute(network(seed)[1].weight.to_sparse()),
    "quantized attribute": lambda seed: Attribute(
        torch.quantize_per_tensor(network(seed)[1].weight, 0.01, 0, torch.qint8)
    ),
}


def identity(model: object) -> tuple[str, str | None]:
    module = module_of(model)
    return weights_hash(module), other_state_sha256(module)


@pytest.mark.parametrize("name", MADE)
def test_other_weights_make_another_key(name):
    """Otherwise the results of one model are those of the other."""
    make = MADE[name]
    assert identity(make(0)) == identity(make(0)) != identity(make(1))
    first, again, other = make(0), make(0), make(1)
    assert identity(lambda x: first(x)) == identity(lambda x: again(x)) != identity(lambda x: other(x))


def test_plain_models_have_nothing_outside_their_state():
    for name in ("scripted", "loaded script", "traced"):
        assert identity(MADE[name](0)) == identity(network(0)) == (weights_hash(network(0)), None)


def cyclic() -> list[object]:
    made: list[object] = [1]
    made.append(made)
    return made


STATES = [
    None,
    0,
    0.5,
    "text",
    torch.int8,
    [1, 2],
    (1, 2),
    [[1], 2],
    {"a": torch.zeros(2)},
    {"a": torch.ones(2)},
    {"a", "b"},
    np.zeros(2),
    np.array([{}, 1], dtype=object),
    torch.eye(3).to_sparse(),
    torch.eye(3).to_sparse_csr(),
    torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    torch.quantize_per_tensor(torch.ones(2), 0.2, 0, torch.qint8),
    torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8),
    torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]),
    io.BytesIO(b"1"),
    cyclic(),
]


def test_every_kind_of_extra_state_is_in_the_hash():
    hashes = [weights_hash(Extra(state)) for state in STATES]
    assert hashes == [weights_hash(Extra(state)) for state in STATES] and len(set(hashes)) == len(STATES)


def test_state_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match="_extra_state"):
        weights_hash(Extra(threading.Lock()))


def test_a_quantized_model_is_attacked_without_gradients():
    test = find("datasets", "digits")().test
    data = (test.images[:8], test.labels[:8])
    model = quantized(0)
    found = mb.evaluate(model, data, attacks=["square", "fgsm"], eps=0.1, quiet=True).records
    clean = found[found["kind"] == "clean"].sort_values("sample")["clean_label"]
    assert clean.tolist() == model(data[0]).argmax(1).tolist()
    status = found[found["kind"] == "attack"].groupby("attack")["status"].unique()
    assert {name: list(some) for name, some in status.items()} == {"square": ["ok"], "fgsm": ["failed"]}
    assert found["reason"].str.contains("gradient").any()


def test_a_lazy_model_has_to_be_called_before():
    test = find("datasets", "digits")().test
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    with pytest.raises(mb.InputError, match=r"lazy.*call the model once"):
        mb.evaluate(model, (test.images[:4], test.labels[:4]), attacks=["square"], eps=0.1)


def test_the_zoo_is_in_single_precision_under_any_default():
    names = [path.stem.partition("--")[2] for path in ZOO.glob("digits--*.safetensors")]
    data = {"n": 4, "attacks": ["fgsm"], "eps": 0.1, "quiet": True}
    before = mb.evaluate("pgd-training", "digits", **data).table
    torch.set_default_dtype(torch.float64)
    try:
        for name in names:
            floats = [one for one in from_zoo(name, "digits").state_dict().values() if one.is_floating_point()]
            assert {one.dtype for one in floats} == {torch.float32}
        after = mb.evaluate("pgd-training", "digits", **data).table
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert after["robust"].tolist() == before["robust"].tolist()
