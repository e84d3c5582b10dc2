"""The Python interface, and models that are named on the command line: what is found is what the command line finds."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import manifold_bench as mb
from manifold_bench.bench.datasets.base import image_hashes
from manifold_bench.defenses import models
from manifold_bench.defenses.answers import answers

SOURCE = """
import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x.flatten(1))


class Sized(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()


torch.manual_seed(0)
net = Net()


def build() -> nn.Module:
    return Net(scale=2.0)


def function(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :10]


def broken() -> nn.Module:
    raise RuntimeError("no weights here")


number = 3
"""


def distances(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The L2 distance of each input to the nearest other class, by the closed form [N]."""
    weight = net[1].weight.detach()
    logits = net(x).detach()
    gaps = logits.gather(1, y[:, None]) - logits
    norms = (weight[y][:, None] - weight).norm(dim=2)
    return torch.where(norms > 0, gaps / norms, torch.inf).amin(1)


def few(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Fewer of these images, because AutoAttack takes its time."""
    return x[:12], y[:12]


@pytest.fixture(scope="module")
def found(linear, interior) -> mb.Results:
    return mb.evaluate(linear, few(*interior), attacks=["autoattack"], norm="l2", eps=[0.1, 0.2])


def test_evaluate_finds_what_the_closed_form_says(found, linear, interior):
    exact = distances(linear, *few(*interior))
    rows = found.records[found.records["attack"] == "autoattack"]
    for eps, cell in rows.groupby("eps"):
        beaten = torch.zeros(len(exact), dtype=torch.bool)
        beaten[cell["sample"].to_numpy()] = torch.tensor(cell["success"].to_numpy())
        assert 0 < (exact < eps).sum() < len(exact)
        assert not (beaten & (exact > 1.01 * eps)).any()
        assert not (~beaten & (exact < 0.95 * eps)).any()


def test_results_show_one_row_for_each_eps_and_write_a_report(found, tmp_path):
    table = found.table
    assert list(table["eps"]) == [0.1, 0.2]
    assert (table["robust"] <= table["clean"]).all()
    assert set(table["strongest"]) == {"autoattack"}
    assert "<table" in found._repr_html_() and "autoattack" in repr(found)
    page = found.report(tmp_path / "out")
    assert page.is_file() and (tmp_path / "out" / "summary.csv").is_file()
    again = mb.load(tmp_path / "out")
    assert again.summary.equals(found.summary)


@pytest.mark.parametrize(
    ("masked", "mark"),
    [
        (lambda net, images: net(images.detach()) + 0 * images.sum(), "‖"),  # every gradient is 0
        (lambda net, images: 1 / 0 if images.shape[0] and images.requires_grad else net(images), "failed"),
    ],
)
def test_what_the_report_marks_is_marked_wherever_the_results_are_shown(masked, mark, linear, interior):
    found = mb.evaluate(lambda images: masked(linear, images), interior, attacks=["pgd"], norm="linf", eps=[0.05, 0.1])
    assert found.table["marks"].str.startswith(mark).all()
    assert pd.api.types.is_numeric_dtype(found.table["robust"])
    assert any(note.startswith(mark) for note in found.notes)
    for text in (repr(found), found._repr_html_()):
        assert f"{mark}(1)" in text.replace(" (", "(") and f"(1) {mark}" in text


def test_a_model_is_left_as_it_was(linear, digits):
    linear.train()
    before = [part.clone() for part in linear.parameters()]
    mb.evaluate(linear, "digits", n=8, attacks=["fgsm"], eps=0.1)
    assert linear.training and all(part.requires_grad for part in linear.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, linear.parameters(), strict=True))
    linear.eval()


@pytest.mark.parametrize(
    "convert", [lambda a: a, lambda a: a.numpy(), lambda a: a.double() if a.is_floating_point() else a]
)
def test_images_of_ones_own(linear, digits, convert):
    x, y = digits.test.images[:24], digits.test.labels[:24]
    result = mb.evaluate(linear, (convert(x), convert(y)), attacks=["noise"], eps=0.01)
    clean = result.records[result.records["kind"] == "clean"]
    assert len(clean) == 24
    right = (linear(x).argmax(1) == y).sum().item()
    assert (clean["clean_label"] == clean["label"]).sum() == right


def test_records_are_about_the_images_that_were_given(linear, digits):
    """The second call in one process hands in other images, as many, with the same labels."""
    for images in (digits.test.images[:6], digits.test.images[6:12]):
        result = mb.evaluate(linear, (images, torch.arange(6)), attacks=["noise"], eps=0.01)
        rows = result.records.drop_duplicates("sample").sort_values("sample")
        assert rows["input_sha256"].tolist() == image_hashes(images)


def test_a_folder_of_images_by_class(linear, digits, tmp_path):
    from PIL import Image

    x, y = digits.test.images[:20], digits.test.labels[:20]
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        (tmp_path / str(label.item())).mkdir(exist_ok=True)
        pixels = np.round(255 * image[0].numpy()).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / str(label.item()) / f"{number}.png")
    assert set(y.tolist()) == set(range(10))  # so that the folders' order is that of the labels
    result = mb.evaluate(linear, tmp_path, attacks=["noise"], eps=0.01)
    clean = result.records[result.records["kind"] == "clean"]
    assert sorted(clean["label"]) == sorted(y.tolist())
    assert (clean["clean_label"] == clean["label"]).sum() == (linear(x).argmax(1) == y).sum()


@pytest.mark.parametrize(
    "data",
    [
        (torch.full((4, 1, 8, 8), 3.0), torch.zeros(4, dtype=torch.long)),
        (torch.full((4, 1, 8, 8), torch.nan), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4, 8, 8), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4, 1, 8, 8), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(4, 1, 8, 8), torch.zeros(4)),
        (torch.zeros(4, 1, 8, 8), -torch.ones(4, dtype=torch.long)),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long)),
        torch.zeros(4, 1, 8, 8),
        None,
        "no-such-data",
    ],
)
def test_what_are_no_images_with_labels_is_refused(linear, data):
    with pytest.raises(mb.InputError) as caught:
        mb.evaluate(linear, data, attacks=["noise"], eps=0.1)
    assert "\n" not in str(caught.value)


def test_rejecting_and_normalized_models_say_so(linear, digits):
    class Detector(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = linear((x + 0.5) / 2)  # undone by normalize
            return torch.cat([logits, logits.amax(1, keepdim=True) + 1], dim=1)

    result = mb.evaluate(Detector(), "digits", n=8, attacks=["noise"], eps=0.1, rejects=True, normalize=(0.5, 0.5))
    assert result.table["rejected"].tolist() == [100.0]
    with pytest.raises(mb.InputError, match="rejects=True"):
        mb.evaluate(Detector(), "digits", n=8, attacks=["noise"], eps=0.1)


@pytest.mark.parametrize("options", [{}, {"classes": 10}])
def test_a_model_s_outputs_are_tried_once(interior, linear, monkeypatch, options):
    tried = []
    monkeypatch.setattr(models, "answers", lambda *given: tried.append(given) or answers(*given))
    mb.evaluate(linear, interior, attacks=["noise"], eps=0.1, **options)
    assert len(tried) == 1
    mb.attack("noise", linear, interior, eps=0.1)
    assert len(tried) == 2


def test_a_defense_that_was_made_for_other_images_is_refused(linear):
    defense = mb.as_defense(linear, (1, 8, 8), 10)
    data = (torch.zeros(4, 3, 32, 32), torch.arange(4))
    with pytest.raises(mb.InputError, match="is made for"):
        mb.evaluate(defense, data, attacks=["noise"], eps=0.1)
    with pytest.raises(mb.InputError, match="is made for"):
        mb.attack("noise", defense, data, eps=0.1)


def test_the_folder_of_a_result_is_named_only_where_it_stays(linear, interior, tmp_path, capsys):
    for out in (None, tmp_path / "out"):
        result = mb.evaluate(linear, interior, attacks=["noise"], eps=0.1, out=out)
        assert (str(result.folder) in capsys.readouterr().out) == (out is not None)


def test_run_takes_models_by_label(linear, tmp_path):
    result = mb.run("quick", defenses={"mine": linear}, dataset=["digits"], attack=["fgsm"], n=8, out=tmp_path)
    assert set(result.records["defense"]) == {"mine"}
    assert result.folder == tmp_path


def test_named_models_are_compared_in_words(linear):
    options = {"dataset": "digits", "attack": "fgsm", "norm": "linf", "n": 16}
    lines = mb.run("quick", defenses={"mine": linear, "trained": "pgd-training"}, **options).comparison.splitlines()
    clean = [line.split(";")[0] for line in lines if ", clean: " in line]
    assert [line.partition(" on ")[0] for line in clean] == ["mine", "trained"]
    assert [line.split(", ")[-1] for line in clean] == ["rank 2 of 2", "rank 1 of 2"]
    alone = mb.evaluate(linear, "digits", attacks=["fgsm"], eps=0.1, n=8)
    assert alone.comparison == "The run has no other defense to compare it with."


def test_a_dry_run_prints_the_plan_and_runs_nothing(linear, tmp_path, capsys):
    chosen = {"dataset": "digits", "attack": ["fgsm"], "n": 8}
    for out in ({}, {"out": tmp_path / "out"}):
        assert mb.run("quick", defenses={"mine": linear}, dry_run=True, **chosen, **out) is None
        shown = capsys.readouterr().out
        assert "mine" in shown and "2 jobs: 2 to run, 0 finished, 0 skipped" in shown and "on this machine" in shown
    assert not (tmp_path / "out").exists()


def test_one_attack_on_one_batch(linear, interior):
    x, y = interior
    attacked = mb.attack("autoattack", linear, (x, y), norm="l2", eps=0.1)
    exact = distances(linear, x, y)
    assert not (attacked.success & (exact > 0.101)).any()
    assert not (~attacked.success & (exact < 0.095)).any()
    assert ((attacked.adversarial - x).flatten(1).norm(dim=1) <= 0.1 + 1e-5).all()
    with pytest.raises(mb.InputError, match="stepz"):
        mb.attack("pgd", linear, (x, y), eps=0.1, stepz=3)


def test_a_script_without_a_main_guard_works(tmp_path):
    (tmp_path / "my_net.py").write_text(SOURCE)
    script = tmp_path / "script.py"
    script.write_text(
        "import manifold_bench as mb\nfrom my_net import net\n"
        "result = mb.evaluate(net, 'digits', n=8, attacks=['fgsm'], eps=0.1)\nprint(len(result.records))\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "16"


def test_importing_the_package_alone_imports_nothing_heavy():
    code = "import sys, manifold_bench; print(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "handed_net.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("handed_net", None)


def small(*defenses: str) -> list[str]:
    words = ["--matrix", "quick", "--dataset", "digits", "--attack", "fgsm", "--n", "8", "--quiet", "--out", "out"]
    return words + [word for name in defenses for word in ("--defense", name)]


def test_the_command_line_takes_instances_factories_classes_and_functions_of_a_file(folder):
    from manifold_bench.bench.run import main

    torch.manual_seed(3)
    names = [f"handed_net.py:{name}" for name in ("net", "build", "Net", "function")]
    assert main(small(*names)) == 0
    records = mb.load(folder / "out").records
    assert set(records["defense"]) == set(names)
    clean = {
        name: rows["clean_label"].tolist() for name, rows in records[records["kind"] == "clean"].groupby("defense")
    }
    assert clean[names[1]] == clean[names[2]]  # twice the logits of the same first weights
    assert main(small(*names)) == 0


def test_a_network_with_random_weights_is_the_same_in_every_process(folder):
    from manifold_bench.bench.run import main

    (folder / "handed_net.py").write_text(SOURCE.replace("torch.manual_seed(0)\n", ""))
    assert main([*small("handed_net.py:net"), "--workers", "1"]) == 0


def test_the_command_line_takes_torchscript(folder):
    from manifold_bench.bench.run import main

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.jit.save(torch.jit.script(net), folder / "net.pt")
    assert main(small("net.pt")) == 0


@pytest.mark.parametrize(
    "name",
    [
        "handed_net.py:Sized",
        "handed_net.py:broken",
        "handed_net.py:number",
        "handed_net.py:nothing",
        "no_file.py:net",
        "missing.pt",
        "pickled.pt",
        "not-a-name.py:net",
        "random.py:net",
    ],
)
def test_the_command_line_refuses_what_is_no_model_in_one_line(folder, capfd, name):
    from manifold_bench.bench.run import main

    torch.save(nn.Linear(2, 2), folder / "pickled.pt")
    (folder / "not-a-name.py").write_text(SOURCE)
    (folder / "random.py").write_text(SOURCE)  # the standard library has one
    assert main(small(name)) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and name in lines[0]


@pytest.mark.parametrize(("option", "meant"), [("normalise", "normalize"), ("clases", "classes"), ("nom", "norm")])
def test_a_misspelt_option_is_answered_with_the_nearest(linear, digits, option, meant):
    with pytest.raises(mb.InputError, match=f"did you mean '{meant}'"):
        mb.evaluate(linear, "digits", eps=0.1, **{option: 3})


def test_a_registered_data_set_comes_before_a_folder_of_that_name(linear, digits, tmp_path, monkeypatch):
    for label in range(10):
        (tmp_path / "digits" / str(label)).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    result = mb.evaluate(linear, "digits", n=8, attacks=["noise"], eps=0.1)
    assert set(result.records["dataset"]) == {"digits"}


@pytest.mark.parametrize("data", ["my_images", Path("my_images"), "./my_images"])
def test_a_missing_folder_of_images_is_named(linear, data):
    for call in (mb.evaluate, partial(mb.attack, "noise")):
        with pytest.raises(mb.InputError, match=r"my_images.*folder|folder.*my_images"):
            call(linear, data, eps=0.1)


@pytest.mark.parametrize("layers", [(nn.Flatten(), nn.Linear(784, 10)), (nn.Conv2d(3, 4, 3), nn.Flatten())])
def test_a_model_of_images_of_another_size_is_refused_by_the_shape_of_the_data(interior, layers):
    for data, where in (("digits", "data set 'digits'"), (interior, "")):
        with pytest.raises(mb.InputError) as caught:
            mb.evaluate(nn.Sequential(*layers), data, n=8, attacks=["noise"], eps=0.1)
        said = str(caught.value)
        assert where in said and "Sequential fails on images of shape [N, 1, 8, 8]" in said and "\n" not in said


def test_a_model_that_changes_torch_s_settings_fails_by_name_and_leaves_them_as_they_were(digits):
    def model(images: Tensor) -> Tensor:
        torch.set_default_device("meta")
        return images.flatten(1)[:, :10]

    result = mb.evaluate(model, "digits", attacks=["fgsm"], eps=0.1, n=4)
    assert torch.get_default_device() == torch.device("cpu")
    assert set(result.records["status"]) == {"failed"}
    assert result.records["reason"].iloc[0].startswith("NotImplementedError: Cannot copy out of meta tensor")
    images = digits.test.images[torch.from_numpy(digits.chosen(4))]
    assert set(result.records["input_sha256"]) == set(image_hashes(images))
