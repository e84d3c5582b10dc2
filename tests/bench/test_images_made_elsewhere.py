"""Adversarial images leave a run as they were judged; images from elsewhere are judged as an attack's outputs are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import manifold_bench as mb
from manifold_bench.bench import judge
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.toml import toml
from manifold_bench.bench.records.images import AdversarialImages
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.report.contents import Report

N = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def made(folder) -> mb.Results:
    """PGD on the undefended model of the zoo, at a small and at a large ε."""
    options = {"n": N, "out": folder / "run", "export": folder / "exported"}
    return mb.evaluate("undefended", "digits", attacks=["pgd"], eps=["8/255", 0.2], **options)


@pytest.fixture(scope="module")
def test():
    return Digits().test


def attacked(results: mb.Results):
    return results.records[results.records["kind"] == "attack"]


def judged(images: Path, out: Path, *arguments: str):
    """The records of images judged on the undefended model."""
    given = [str(images), "--defense", "undefended", "--out", str(out), "--workers", "0", "--quiet", *arguments]
    assert judge.main(given) == 0
    return attacked(mb.load(out))


STATED = ("--dataset", "digits", "--norm", "linf", "--eps", "0.2")


def test_exported_images_are_those_that_were_judged(made, folder, test):
    files = sorted((folder / "exported").glob("*.npz"))
    assert len(files) == 2
    for file in files:
        with np.load(file) as stored:
            meta = json.loads(str(stored["meta"]))
            rows = attacked(made)[attacked(made)["eps"] == meta["eps"]]
            cell = {"dataset": "digits", "defense": "undefended", "attack": "pgd", "norm": "linf", "eps": meta["eps"]}
            assert meta == cell | {"split": "test", "seed": 0}
            assert stored["images"].dtype == np.float32 and stored["images"].shape == (N, 1, 8, 8)
            assert (stored["indices"] == rows["sample"]).all() and (stored["labels"] == rows["label"]).all()
            clean = test.images[torch.from_numpy(stored["indices"])].numpy().astype(float)
            assert (np.abs(stored["images"] - clean).max(axis=(1, 2, 3)) == rows["linf"]).all()
            found = made.adversarial("undefended", "pgd", meta["eps"])
            assert (found.images == stored["images"]).all() and found.meta == meta


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({}, ["eps", "8/255, 0.2"]),
        ({"eps": "4/255"}, ["eps", "4/255", "8/255, 0.2"]),
        ({"eps": "x"}, ["eps", "8/255"]),
        ({"attack": "apgd"}, ["attack", "'apgd'", "pgd"]),
        ({"eps": 0.2, "seed": 3}, ["seed", "3", "0"]),
    ],
)
def test_a_cell_that_is_not_there_or_not_one_is_refused(made, cell, words):
    with pytest.raises(InputError) as error:
        made.adversarial(**cell)
    assert all(word in str(error.value) for word in words)


def test_a_finished_job_runs_again_where_its_images_were_not_kept(tmp_path):
    def run(**options):
        return mb.evaluate("undefended", "digits", n=4, attacks=["fgsm"], eps=0.2, out=tmp_path / "run", **options)

    first = run()
    with pytest.raises(InputError, match="export"):
        first.adversarial()
    second = run(export=tmp_path / "exported")
    assert len(second.adversarial().images) == 4 and len(list((tmp_path / "exported").iterdir())) == 1
    assert first.records.drop(columns="seconds").equals(second.records.drop(columns="seconds"))
    own = run(export=tmp_path / "run" / "images")
    assert own.adversarial().images.tobytes() == second.adversarial().images.tobytes()


def test_noise_images_and_sizes_of_many_digits_are_kept_too(tmp_path):
    matrix = {
        "datasets": [{"name": "digits", "n": 3}],
        "defenses": [{"name": "gmvae"}],
        "attacks": [
            {"name": "noise", "norm": "fooling"},
            {"name": "evolutionary", "norm": "fooling"},
            {"name": "fgsm", "eps": [1e-5, 0.1234567891]},
        ],
    }
    (tmp_path / "matrix.toml").write_text(toml(matrix))
    result = mb.run(tmp_path / "matrix.toml", export=tmp_path / "exported", workers=0)
    assert len(list((tmp_path / "exported").iterdir())) == 4
    for attack in ("noise", "evolutionary"):  # which aims at every class: one image for each input is kept
        found = result.adversarial(attack=attack)
        assert found.images.shape == (3, 1, 8, 8) and found.labels.tolist() == [-1] * 3
        assert found.indices.tolist() == [0, 1, 2] and found.meta["split"] == "noise"
    assert len(result.adversarial(attack="fgsm", eps=0.1234567891).images) == 3


def test_images_show_themselves_by_their_shape_and_cell():
    arrays = {"images": np.zeros((3, 1, 8, 8)), "labels": np.arange(3), "indices": np.arange(3)}
    meta = {"dataset": "digits", "attack": "fgsm", "eps": 8 / 255, "seed": 0}
    shown = repr(AdversarialImages(**arrays, inputs=np.array(["a", "b", "c"]), meta=meta))
    assert "(3, 1, 8, 8)" in shown and "8/255" in shown and "fgsm" in shown and len(shown) < 100
    assert "(3, 1, 8, 8)" in repr(AdversarialImages(**arrays, inputs=np.array(["a", "b", "c"]), meta={}))


def test_exported_images_are_judged_as_they_were(made, folder, tmp_path):
    (file,) = (folder / "exported").glob("*--0.2--*.npz")
    rows, before = judged(file, tmp_path / "out"), attacked(made)[attacked(made)["eps"] == 0.2]
    for column in ("sample", "label", "adv_label", "success", "valid"):
        assert rows[column].tolist() == before[column].tolist()
    changed = (before["clean_label"] == before["label"]).to_numpy()
    assert (rows["linf"].to_numpy() == before["linf"].to_numpy())[changed].all()
    assert rows["success"].sum() > 0 and set(rows["attack"]) == {"pgd on undefended"}


def test_the_verdict_says_that_no_attack_was_made_on_the_defense(made, folder, tmp_path):
    (file,) = (folder / "exported").glob("*--0.2--*.npz")
    judged(file, tmp_path / "out")
    (assessment,) = Report(Results.load(tmp_path / "out")).assessments
    assert "The images were made elsewhere." in str(assessment) and "whole diagnosis" not in str(assessment)


def test_tensors_belong_to_the_first_test_images(test, tmp_path):
    images = (test.images[:6] + 0.1).clamp(0, 1)
    torch.save(images, tmp_path / "plain.pt")
    torch.save({"adv_complete": images}, tmp_path / "aa.pth")
    plain = judged(tmp_path / "plain.pt", tmp_path / "plain", *STATED)
    assert plain["sample"].tolist() == [*range(6)] and plain["label"].tolist() == test.labels[:6].tolist()
    torch.save(images.bfloat16(), tmp_path / "half.pt")
    half = judged(tmp_path / "half.pt", tmp_path / "half", *STATED)["linf"]
    assert half.to_numpy() == pytest.approx(plain["linf"].to_numpy(), abs=0.01)
    named = judged(tmp_path / "aa.pth", tmp_path / "aa", *STATED, "--n", "4", "--label", "autoattack")
    assert named["linf"].tolist() == plain["linf"].tolist()[:4] and set(named["attack"]) == {"autoattack"}


def test_several_sets_of_images_count_as_several_attacks(test, tmp_path):
    torch.save({"apgd-ce": test.images[:5], "square": 1 - test.images[:5]}, tmp_path / "individual.pth")
    rows = judged(tmp_path / "individual.pth", tmp_path / "out", *STATED)
    valid = rows.groupby("attack")["valid"].sum()
    assert valid.to_dict() == {"individual: apgd-ce": 5, "individual: square": 0}


def test_pictures_are_judged_as_they_are_and_belong_to_the_images_of_their_numbers(test, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in (3, 40, 7):
        levels = (test.images[number, 0] * 255).round().clamp(0, 205) + 50
        Image.fromarray(levels.to(torch.uint8).numpy()).save(folder / f"{number:04d}.png")
    (folder / "labels.txt").write_text("0\n0\n0\n")
    rows = judged(folder, tmp_path / "out", *STATED).set_index("sample")
    assert sorted(rows.index) == [3, 7, 40] and rows["valid"].all()
    for number in rows.index:
        seen = ((test.images[number] * 255).round().clamp(0, 205) + 50) / 255
        assert rows["linf"][number] == pytest.approx((seen - test.images[number]).abs().max().item(), abs=1e-6)


def test_what_is_out_of_bounds_is_no_success(test, tmp_path, capsys):
    images = test.images[:4].clone()
    images[0] = 1 - images[0]
    images[1] = torch.nan
    images[2] = images[2] - 0.1
    torch.save(images, tmp_path / "images.pt")
    rows = judged(tmp_path / "images.pt", tmp_path / "out", *STATED)
    assert rows["valid"].tolist() == [False, False, False, True] and not rows["success"].any()
    said = capsys.readouterr().out
    assert "3 of 4 images" in said and "indices" in said
    assert all(part in said for part in ("1 not finite", "1 not in [0,1]", "1 farther than ε"))
    torch.save(1 - test.images[:100], tmp_path / "far.pt")  # some are wrong when clean, and are not attacked
    judged(tmp_path / "far.pt", tmp_path / "far", *STATED)
    (assessment,) = Report(Results.load(tmp_path / "far")).assessments
    assert "not known" in assessment.left[0] and "`indices`" in assessment.left[0]


def test_pictures_that_were_rounded_beyond_the_size_are_told_from_those_of_other_images(test, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        levels = ((test.images[number, 0] + 0.2).clamp(0, 1) * 255).round()
        Image.fromarray(levels.to(torch.uint8).numpy()).save(folder / f"{number:04d}.png")
    judged(folder, tmp_path / "out", *STATED)
    said = capsys.readouterr().out
    assert "no more than half a grey level" in said and "1/510" in said and "other test images" not in said


def test_nothing_is_said_of_the_effort_of_attacks_that_nobody_saw(test, tmp_path):
    torch.save(test.images[:10].clone(), tmp_path / "same.pt")
    judged(tmp_path / "same.pt", tmp_path / "out", *STATED)
    report = Report(Results.load(tmp_path / "out"))
    (assessment,) = report.assessments
    assert "‖" not in str(assessment) and report.summary["given_up"].isna().all() and not report.given_up


class Code:
    """A file that runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


X = np.zeros((2, 1, 8, 8), np.float32)

BAD = {
    "missing": (lambda at: at / "none.npz", STATED, ["none.npz", "no such file"]),
    "another ending": (lambda at: _text(at / "a.txt"), STATED, ["a.txt", ".npz", ".pt", "folder"]),
    "no zip": (lambda at: _text(at / "a.npz"), STATED, ["a.npz"]),
    "no images": (lambda at: npz(at / "a.npz", x=X), STATED, ["`images`", "x"]),
    "three dimensions": (lambda at: npz(at / "a.npz", images=X[:, 0]), STATED, ["[2, 8, 8]", "[N,C,H,W]"]),
    "another shape": (lambda at: npz(at / "a.npz", images=X[:, :, :4]), STATED, ["[1, 4, 8]", "[1, 8, 8]"]),
    "0 to 255": (lambda at: npz(at / "a.npz", images=X + 255), STATED, ["255", "0 to 1"]),
    "whole numbers": (lambda at: npz(at / "a.npz", images=X.astype(int)), STATED, ["int64", "floats"]),
    "texts": (lambda at: npz(at / "a.npz", images=X.astype(str)), STATED, ["floats"]),
    "objects": (lambda at: npz(at / "a.npz", images=np.array([None])), STATED, ["a.npz"]),
    "other labels": (lambda at: npz(at / "a.npz", images=X, labels=[10, 11]), STATED, ["labels", "'digits'"]),
    "labels of others": (lambda at: npz(at / "a.npz", images=X, labels=[1]), STATED, ["labels", "2 images"]),
    "large index": (lambda at: npz(at / "a.npz", images=X, indices=[0, 9999]), STATED, ["test images", "indices"]),
    "negative index": (lambda at: npz(at / "a.npz", images=X, indices=[0, -1]), STATED, ["indices"]),
    "index twice": (lambda at: npz(at / "a.npz", images=X, indices=[5, 5]), STATED, ["twice"]),
    "other inputs": (lambda at: npz(at / "a.npz", images=X, inputs=["a", "b"]), STATED, ["unperturbed images"]),
    "meta no table": (lambda at: npz(at / "a.npz", images=X, meta="3"), STATED, ["meta"]),
    "too many": (lambda at: npz(at / "a.npz", images=np.zeros((9999, 1, 8, 8), np.float32)), STATED, ["test images"]),
    "more than there are": (lambda at: npz(at / "a.npz", images=X), (*STATED, "--n", "3"), ["--n", "2 images"]),
    "code": (lambda at: _saved(at / "a.pt", Code()), STATED, ["a.pt", "tensors"]),
    "a text": (lambda at: _text(at / "a.pt", "hello"), STATED, ["a.pt", "tensors"]),
    "one array": (
        lambda at: np.save(at / "a.npy", X) or (at / "a.npy").rename(at / "a.npz"),
        STATED,
        ["a.npz", ".npy"],
    ),
    "sparse": (lambda at: _saved(at / "a.pt", torch.from_numpy(X).to_sparse()), STATED, ["a.pt", "ordinary"]),
    "nowhere": (lambda at: _saved(at / "a.pt", torch.from_numpy(X).to("meta")), STATED, ["a.pt", "meta"]),
    "no tensors": (lambda at: _saved(at / "a.pt", {"epoch": 3}), STATED, ["a.pt", "[N,C,H,W]"]),
    "no picture": (lambda at: _text(_folder(at) / "0000.png").parent, STATED, ["0000.png"]),
    "16 bits": (lambda at: _sixteen_bits(_folder(at) / "0000.png").parent, STATED, ["0000.png", "8 bits"]),
    "size a truth value": (lambda at: npz(at / "a.npz", images=X, meta='{"eps": true}'), STATED[:4], ["eps is true"]),
    "attack a list": (lambda at: npz(at / "a.npz", images=X, meta='{"attack": [1]}'), STATED, ["attack is [1]"]),
    "a long name": (
        lambda at: npz(at / "a.npz", images=X, meta=json.dumps({"defense": "x" * 5000})),
        STATED,
        ["defense is", "200 printable"],
    ),
    "TIFF among PNG": (lambda at: _with_tiff(_folder(at)), STATED, ["0001.tif", ".png"]),
    "no number": (lambda at: _text(_folder(at) / "cat.png").parent, STATED, ["cat.png", "0000.png"]),
    "folder of files": (lambda at: npz(_folder(at) / "a.npz", images=X).parent, STATED, ["pictures/a.npz"]),
    "empty folder": (lambda at: _folder(at), STATED, ["no pictures"]),
    "no data set": (lambda at: npz(at / "a.npz", images=X), STATED[2:], ["--dataset"]),
    "no norm": (lambda at: npz(at / "a.npz", images=X), (*STATED[:2], "--eps", "0.1"), ["--norm"]),
    "no eps": (lambda at: npz(at / "a.npz", images=X), STATED[:4], ["--eps"]),
    "large eps": (lambda at: npz(at / "a.npz", images=X), (*STATED[:5], "8"), ["--eps", "(0, 1]"]),
    "size a text": (lambda at: npz(at / "a.npz", images=X, meta='{"eps": "much"}'), STATED[:4], ["--eps", "'much'"]),
    "norm of noise": (
        lambda at: npz(at / "a.npz", images=X, meta='{"norm": "fooling"}'),
        STATED[:2],
        ["--norm", "linf"],
    ),
    "data set a number": (lambda at: npz(at / "a.npz", images=X, meta='{"dataset": 3}'), STATED[2:], ["--dataset"]),
    "unknown data set": (lambda at: npz(at / "a.npz", images=X), ("--dataset", "digit", *STATED[2:]), ["'digits'"]),
    "reserved label": (lambda at: npz(at / "a.npz", images=X), (*STATED, "--label", "clean"), ["--label", "'clean'"]),
}


def _text(path: Path, content: str = "nothing") -> Path:
    path.write_text(content)
    return path


def _saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def _sixteen_bits(path: Path) -> Path:
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(path)
    return path


def _with_tiff(folder: Path) -> Path:
    for name in ("0000.png", "0001.tif"):
        Image.new("L", (8, 8)).save(folder / name)
    return folder


def _folder(path: Path) -> Path:
    (path / "pictures").mkdir()
    return path / "pictures"


@pytest.mark.parametrize("case", BAD)
def test_images_that_cannot_be_judged_are_refused_in_one_line(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make, arguments, words = BAD[case]
    given = [str(make(tmp_path)), "--defense", "undefended", "--out", str(tmp_path / "out"), *arguments]
    assert judge.main([*given, "--workers", "0"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and all(word in said for word in words), said
    assert not Path("ran").exists()
