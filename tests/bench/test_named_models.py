"""Models that a name stands for: weights of a file, timm and RobustBench, with stand-ins for what is not installed."""

from __future__ import annotations

import io
import logging
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import manifold_bench as mb
from manifold_bench.bench.planning import named_models
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.run import main as run_command
from manifold_bench.defenses.models import ModelSpec

NETWORK = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))


class Sized(nn.Linear):
    pass


number = 3
"""

TIMM = """
from torch import nn


def is_model(name):
    return name == "tiny_net"


def list_models():
    return ["tiny_net"]


def create_model(name, pretrained):
    assert pretrained
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    nn.init.ones_(model[1].weight)
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "input_size": (3, 4, 4)}
    return model
"""

ROBUSTBENCH = {
    "__init__.py": "",
    "model_zoo.py": """
import enum

Data = enum.Enum("Data", {"cifar_10": "cifar10"})
Threat = enum.Enum("Threat", {"Linf": "Linf"})
model_dicts = {Data.cifar_10: {Threat.Linf: {"Carmon2019Unlabeled": {}, "Lost2020": {}}}}
""",
    "utils.py": """
from torch import nn


def load_model(model_name, dataset, threat_model, model_dir):
    assert (dataset, threat_model) == ("cifar10", "Linf")
    if model_name == "Lost2020":
        raise ConnectionError("no route to host")
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
""",
}

SPEC = ModelSpec(shape=(3, 4, 4), num_classes=5)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "weighted_net.py").write_text(NETWORK)
    monkeypatch.setattr(named_models, "urlopen", lambda server, timeout: io.BytesIO())  # as if there were a network
    named_models.timm_model.cache_clear()
    named_models.robustbench_model.cache_clear()
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("weighted_net", "timm", "robustbench", "huggingface_hub"):
            del sys.modules[name]


@pytest.fixture
def libraries(folder, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "robustbench")]:
        monkeypatch.delitem(sys.modules, name)
    (folder / "timm.py").write_text(TIMM)
    (folder / "robustbench").mkdir()
    for name, content in ROBUSTBENCH.items():
        (folder / "robustbench" / name).write_text(content)
    monkeypatch.syspath_prepend(folder)


def trained() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


SAVED = {
    "w.safetensors": lambda net, path: save_file(net.state_dict(), path),
    "w.pt": lambda net, path: torch.save(net.state_dict(), path),
    "checkpoint.pth": lambda net, path: torch.save({"state_dict": net.state_dict(), "epoch": 3}, path),
    "parallel.pt": lambda net, path: torch.save(nn.DataParallel(net).state_dict(), path),
    "compiled.pt": lambda net, path: torch.save(torch.compile(net).state_dict(), path),
}


@pytest.mark.parametrize("file", SAVED)
def test_a_network_with_the_weights_of_a_file(folder, file):
    SAVED[file](trained(), folder / file)
    spec = ModelSpec(shape=(1, 8, 8), num_classes=10)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(find("defenses", f"weighted_net.py:Net@{file}")(spec)(x), trained()(x))


def test_pairs_of_a_network_and_its_weights_in_python(folder):
    save_file(trained().state_dict(), folder / "w.safetensors")
    x = torch.rand(4, 1, 8, 8)
    for network in ("weighted_net.py:Net", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), trained):
        assert torch.equal(mb.as_defense((network, "w.safetensors"), (1, 8, 8), 10)(x), trained()(x))
    result = mb.evaluate(("weighted_net.py:Net", "w.safetensors"), "digits", n=8, attacks="noise", eps=0.1)
    assert set(result.records["defense"]) == {"weighted_net.py:Net@w.safetensors"}


def test_a_network_with_several_files_of_weights_is_several_models(folder):
    """Nor does it change the network itself."""
    files = ["first.pt", "second.pt"]
    nets = []
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        nets.append(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        torch.save(nets[-1].state_dict(), file)
    (folder / "weighted_net.py").write_text(f"{NETWORK}\n\nshared = Net()\n")
    x, spec, network = torch.rand(4, 1, 8, 8), ModelSpec(shape=(1, 8, 8), num_classes=10), trained()
    named = [find("defenses", f"weighted_net.py:shared@{file}") for file in files]
    given = [mb.as_defense((network, file), (1, 8, 8), 10) for file in files]
    for one, other, net in zip(named, given, nets, strict=True):
        assert torch.equal(one(spec)(x), net(x)) and torch.equal(other(x), net(x))
    assert torch.equal(network(x), trained()(x))


def test_other_weights_are_another_result(folder):
    from manifold_bench.bench.run import main

    name = "weighted_net.py:Net@w.pt"
    words = ["--matrix", "quick", "--dataset", "digits", "--defense", name, "--attack", "noise", "--n", "8"]
    answers = []
    for _ in range(2):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        torch.save(net.state_dict(), folder / "w.pt")
        assert main([*words, "--quiet", "--workers", "0", "--out", "out"]) == 0
        records = mb.load("out").records
        clean = records[records["kind"] == "clean"].sort_values("sample")
        answers.append(clean["clean_label"].tolist())
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("weighted_net.py:Net@none.pt", "no such file"),
        ("weighted_net.py:Net@pickled.pt", "state_dict()"),
        ("weighted_net.py:Net@script.pt", "state_dict()"),
        ("weighted_net.py:Net@text.safetensors", "state_dict()"),
        ("weighted_net.py:Net@other.pt", "does not fit Net"),
        ("weighted_net.py:Net@tensor.pt", "state_dict()"),
        ("weighted_net.py:Sized@w.pt", "takes arguments"),
        ("weighted_net.py:number@w.pt", "takes no weights"),
    ],
)
def test_weights_that_cannot_be_used(folder, name, advice):
    torch.save(trained(), folder / "pickled.pt")
    torch.jit.save(torch.jit.script(trained()), folder / "script.pt")
    (folder / "text.safetensors").write_text("no weights")
    torch.save(nn.Linear(3, 3).state_dict(), folder / "other.pt")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    torch.save(trained().state_dict(), folder / "w.pt")
    with pytest.raises(mb.InputError) as caught:
        find("defenses", name)
    assert advice in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_of_timm_gets_images_normalized_as_it_was_trained(libraries):
    x = torch.rand(4, 3, 4, 4)
    found = find("defenses", "timm:tiny_net")(SPEC)(x)
    expected = ((x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5).sum((1, 2, 3))
    assert torch.allclose(found - found[:1], (expected - expected[0])[:, None].expand(4, 5), atol=1e-4)


def test_models_of_libraries_run_by_name(libraries):
    data = (torch.rand(8, 3, 4, 4), torch.arange(8) % 5)
    for name in ("timm:tiny_net", "robustbench:cifar10/Linf/Carmon2019Unlabeled"):
        result = mb.evaluate(name, data, attacks="noise", eps=0.1)
        assert set(result.records["defense"]) == {name}


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("timm:tiny_nett", "did you mean 'tiny_net'"),
        ("robustbench:cifar10/Linf/Carmon2019", "did you mean 'cifar10/Linf/Carmon2019Unlabeled'"),
        ("robustbench:Carmon", "cifar10/Linf/Carmon2019Unlabeled"),
        ("robustbench:cifar10/Linf/Lost2020", "network"),
    ],
)
def test_models_that_a_library_does_not_have(libraries, name, advice):
    with pytest.raises(mb.InputError) as caught:
        find("defenses", name)
    assert advice in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("library", ["timm", "robustbench"])
def test_a_library_that_is_not_installed(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(mb.InputError, match=f"pip install {library}"):
        find("defenses", f"{library}:cifar10/Linf/some")


@pytest.mark.parametrize("library", ["timm", "robustbench"])
@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("import absent_package.part", "pip install absent-package"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "operator torchvision::nms does not exist"),
        ("raise OSError('libcudart.so: cannot open shared object file')", "libcudart.so"),
        ("raise SystemExit(3)", "SystemExit"),
        ("(", "SyntaxError"),
    ],
)
def test_a_library_that_cannot_be_imported(libraries, folder, library, content, advice):
    (folder / ("timm.py" if library == "timm" else "robustbench/model_zoo.py")).write_text(content)
    with pytest.raises(mb.InputError) as caught:
        find("defenses", f"{library}:cifar10/Linf/Carmon2019Unlabeled")
    said = str(caught.value)
    assert library in said and advice in said and "\n" not in said


FAILING = """
import logging


def is_model(name):
    return True


def create_model(name, pretrained):
    for number in range(5):
        logging.getLogger("hub").warning("retry %d", number)
    raise ConnectionError("no route to host")
"""


def test_without_a_network_one_line_is_all_that_a_user_sees(libraries, folder, capfd):
    (folder / "timm.py").write_text(FAILING)
    assert run_command(["--matrix", "smoke", "--defense", "timm:resnet18", "--out", "out"]) == 2
    out, err = capfd.readouterr()
    assert len((out + err).splitlines()) == 1 and "timm:resnet18" in err
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize("name", ["timm:resnet18", "robustbench:cifar10/Linf/Carmon2019Unlabeled"])
def test_a_server_that_does_not_answer_is_not_waited_for(libraries, folder, monkeypatch, name):
    """A server that never answers, and a library that would try for ever."""
    never = "def create_model(name, pretrained): import huggingface_hub.constants as c; assert not c.HF_HUB_OFFLINE"
    (folder / "huggingface_hub").mkdir()
    (folder / "huggingface_hub" / "__init__.py").write_text("")
    (folder / "huggingface_hub" / "constants.py").write_text("HF_HUB_OFFLINE = False")
    (folder / "timm.py").write_text(f"import huggingface_hub.constants\nis_model = bool\n{never}\n")
    monkeypatch.setattr(named_models, "SECONDS", 0.1)
    monkeypatch.setattr(named_models, "urlopen", lambda server, timeout: time.sleep(60))
    with pytest.raises(mb.InputError) as caught:
        find("defenses", name)
    said = str(caught.value)
    assert name in said and "network" in said and "\n" not in said
    assert not sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE if "timm" in name else True


def test_weights_of_robustbench_that_are_here_need_no_network(libraries, folder, monkeypatch):
    def refuse(server: str, timeout: float) -> None:
        raise OSError("no network")

    monkeypatch.setattr(named_models, "urlopen", refuse)
    monkeypatch.setenv("MANIFOLD_BENCH_CACHE", str(folder / "cache"))
    stored = folder / "cache" / "robustbench" / "cifar10" / "Linf" / "Carmon2019Unlabeled.pt"
    stored.parent.mkdir(parents=True)
    stored.touch()
    assert find("defenses", "robustbench:cifar10/Linf/Carmon2019Unlabeled")(SPEC)(torch.rand(2, 3, 4, 4)).shape == (
        2,
        5,
    )
