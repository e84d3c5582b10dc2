"""Measurements: the Fréchet distance against its closed form, and results that resume, fail and show as such."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import bench_run
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import Blurred, Grey, Net
from torch import Tensor

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.measurements.frechet import FrechetDistance, frechet_distance, moments, penultimate
from manifold_bench.bench.measurements.reconstruction import Reconstruction
from manifold_bench.bench.measurements.samples import Samples
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.planning.refs import defense_ref
from manifold_bench.bench.records.measurements import Outcome, load, read, status, store
from manifold_bench.bench.report.measurements import curves, measurement_plots, measurement_tables
from manifold_bench.bench.run import main
from manifold_bench.bench.running.measuring import run_measurement
from manifold_bench.defenses.base import Defense, DefenseSpec

# --- the distance ----------------------------------------------------------------------------------------------------


def rotation(seed: int, size: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 2, *[st.floats(0, 4)] * 2), min_size=1, max_size=5), st.integers(0, 9))
def test_gaussians_with_common_axes_have_a_closed_form(axes, seed):
    """Σ (μ₁ − μ₂)² + (σ₁ − σ₂)² along the axes; σ = 0 is allowed: features may be fewer than their dimensions say."""
    mean, mean_2, deviation, deviation_2 = np.array(axes).T
    turn = rotation(seed, len(axes))
    one = turn @ mean, turn @ np.diag(deviation**2) @ turn.T
    other = turn @ mean_2, turn @ np.diag(deviation_2**2) @ turn.T
    expected = np.square(mean - mean_2).sum() + np.square(deviation - deviation_2).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, abs=1e-5)
    assert frechet_distance(other, one) == pytest.approx(frechet_distance(one, other), abs=1e-5)


def test_gaussians_without_common_axes():
    """tr (Σ₁Σ₂)^½ of 2×2 matrices is √(tr Σ₁Σ₂ + 2 √det Σ₁Σ₂)."""
    one, other = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    product = one @ other
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(one) + np.trace(other) - 2 * root
    assert frechet_distance((np.zeros(2), one), (np.zeros(2), other)) == pytest.approx(expected, rel=1e-12)


def test_nothing_is_farther_from_itself_than_nothing():
    features = np.random.default_rng(0).normal(size=(20, 50))  # fewer than dimensions
    assert frechet_distance(moments(features), moments(features)) == pytest.approx(0, abs=1e-9)


def test_a_shift_of_every_image_is_its_square():
    features = np.random.default_rng(0).normal(size=(100, 3))
    assert frechet_distance(moments(features), moments(features + np.array([1, 2, 2]))) == pytest.approx(9)


# --- the features ----------------------------------------------------------------------------------------------------


class Layerless(Defense):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


SPEC = DefenseSpec(shape=(1, 2, 2), num_classes=3)


def test_features_are_what_the_output_layer_is_given():
    x = torch.rand(5, 1, 2, 2)
    found = penultimate(Net(SPEC), x.split(2))
    assert found.dtype == np.float64 and np.allclose(found, 2 * x.flatten(1).numpy())


def test_features_of_a_network_without_layers_are_refused():
    with pytest.raises(ValueError, match="no linear output layer"):
        penultimate(Layerless(SPEC), [torch.rand(1, 1, 2, 2)])


def test_only_what_generates_can_be_measured():
    distance = FrechetDistance()
    assert distance.unsuited(Net(SPEC)) is None
    assert "no generator" in str(distance.unsuited(Layerless(SPEC)))


class Noise:
    """A data set of uniform noise, as `Net` samples it."""

    def __init__(self, seed: int) -> None:
        from manifold_bench.defenses.base import LabelledImages

        self.test = LabelledImages(Net(SPEC).sample(3000, seed), torch.zeros(3000, dtype=torch.long))
        self.validation = self.test


def test_samples_of_the_data_are_near_and_batches_are_not_alike():
    values = FrechetDistance(samples=2500, features="n").measure(Net(SPEC), {"n": Net(SPEC)}, Noise(7), seed=1)
    assert 0 < values["fid"] < 0.02 and values["validation images"] == pytest.approx(0, abs=1e-9)
    again = FrechetDistance(samples=2500, features="n").measure(Net(SPEC), {"n": Net(SPEC)}, Noise(7), seed=1)
    other = FrechetDistance(samples=2500, features="n").measure(Net(SPEC), {"n": Net(SPEC)}, Noise(7), seed=2)
    assert values == again != other


# --- samples ---------------------------------------------------------------------------------------------------------


def test_samples_are_shown_by_class_and_classified():
    defense = Grey(SPEC)
    data = type("Data", (), {"num_classes": 3})
    assert Samples(n=6).measure(defense, {}, data, 0) == {
        "accepted as their class": pytest.approx(1 / 3),
        "accepted as another": pytest.approx(1 / 3),
        "rejected": pytest.approx(1 / 3),
    }
    pictures = Samples(shown=2).pictures(defense, data, 0)
    assert pictures.shape == (2, 3, 1, 2, 2)
    assert torch.equal(pictures[:, 2], torch.full((2, 1, 2, 2), 0.8))


def test_pictures_are_stored_with_the_result_and_drawn_as_they_were(tmp_path):
    job = next(job for job in jobs() if job.defense.label == "net")
    pictures = torch.zeros(2, 3, 1, 4, 5)
    pictures[1, 2, 0, 3, 4] = 1
    store(job, tmp_path, Outcome("ok", values={"fid": 3}, pictures=pictures))
    (path,) = (tmp_path / "measurements").glob("*--*.json")
    ((name, figure, _),) = measurement_plots([read(path)])
    assert name == ("digits", "net", "fid")
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (10, 18)
    assert shown[8, 16] == 255 and not shown[:4, :5].any() and (shown[4] == 255).all()
    assert list(measurement_plots([{**read(path), "pictures": None}])) == []


# --- jobs and results ------------------------------------------------------------------------------------------------

FID = "manifold_bench.bench.measurements.frechet:FrechetDistance"
MATRIX = {
    "datasets": [{"name": "digits", "n": 4}],
    "defenses": ["undefended", {"name": "measured:Net", "label": "net"}, "inc"],
    "attacks": [{"name": "fgsm", "eps": [0.1]}],
    "measurements": [{"name": FID, "label": "fid", "samples": 100}],
}


def jobs(seed: int = 0, **changes: object):
    matrix = parse_matrix({**MATRIX, "seed": seed, "measurements": [{**MATRIX["measurements"][0], **changes}]}, "m")
    return make_plan(matrix, Options()).measurements


def test_each_measurement_has_an_identity_of_its_own():
    made = [*jobs(), *jobs(samples=101), *jobs(seed=1), *jobs(features="net"), *jobs(label="other")]
    assert len({job.key for job in made}) == len(made) == 15
    assert [job.key for job in jobs()] == [job.key for job in jobs()]


def test_what_it_depends_on_is_in_the_identity():
    job = next(job for job in jobs() if job.defense.label == "net")
    identity = job.identity
    assert identity["defense"]["weights_sha256"] and identity["others"][0]["weights_sha256"]
    assert identity["dataset"]["revision"] and identity["measurement"]["parameters"]["samples"] == 100


def test_a_measurement_may_be_confined_and_is_skipped_where_it_makes_no_sense():
    assert [job.defense.label for job in jobs(defenses=["net"])] == ["net"]
    assert [bool(job.skip) for job in jobs()] == [True, False, True]


def test_a_result_survives_and_a_changed_one_is_damaged(tmp_path):
    job = next(job for job in jobs() if job.defense.label == "net")
    assert status(job, tmp_path) == "missing"
    store(job, tmp_path, Outcome("ok", values={"fid": 3}))
    assert status(job, tmp_path) == "ok"
    (path,) = (tmp_path / "measurements").glob("*--*.json")
    assert read(path)["values"] == {"fid": 3.0}
    path.write_text(path.read_text().replace("3.0", "2.0"))
    assert status(job, tmp_path) == "damaged"
    with pytest.raises(InputError, match=r"damaged \(its content doesn't match its checksum\); delete it"):
        read(path)
    path.write_text("{")
    assert status(job, tmp_path) == "damaged"


def test_a_failure_is_stored_with_its_reason(tmp_path):
    job = next(job for job in jobs(features="inc") if job.defense.label == "net")
    object.__setattr__(job, "others", ())
    run_measurement(job, tmp_path)
    assert status(job, tmp_path) == "failed"
    (path,) = (tmp_path / "measurements").glob("*--*.json")
    assert read(path)["reason"] == "KeyError: 'inc'" and read(path)["values"] == {}
    assert list((tmp_path / "measurements" / "failures").glob("*.txt"))


def test_tables_show_values_and_reasons():
    def result(defense: str, status: str = "ok", reason: str = "", **values: float) -> dict:
        return {
            "dataset": "digits",
            "defense": defense,
            "measurement": "fid",
            "title": "FID",
            "headline": "fid",
            "status": status,
            "reason": reason,
            "values": values,
        }

    (table,) = measurement_tables([result("a", fid=51.23456, n=360), result("b", "failed", "out of memory")])
    assert table.header == ["defense", "fid", "n"]
    assert table.rows == [["a", "51.23", "360"], ["b", "failed (1)", "failed (1)"]]
    assert table.notes == ["failed: out of memory"]
    assert measurement_tables([]) == []


# --- in a run --------------------------------------------------------------------------------------------------------

RUN = f"""
datasets = [{{ name = "digits", n = 4 }}]
defenses = ["undefended", {{ name = "measured:Net", label = "net" }}]
[[attacks]]
name = "fgsm"
eps = [0.1]
defenses = ["net"]
n = 3
[[measurements]]
name = "{FID}"
label = "fid"
samples = 60
[[claims]]
source = "a paper"
text = "generates well"
published = 50.4
measurement = "fid"
dataset = "digits"
defense = "net"
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("measured")
    (folder / "m.toml").write_text(RUN, encoding="utf-8")
    done = bench_run(folder / "m.toml", folder / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "m.toml", folder / "out"


def test_a_run_measures_once(measured):
    matrix, out = measured
    before = load(out)
    assert [(r["defense"], r["status"]) for r in before] == [("undefended", "skipped"), ("net", "ok")]
    assert before[1]["values"]["fid"] > 0
    times = {path: path.stat().st_mtime_ns for path in (out / "measurements").glob("*net*")}
    done = bench_run(matrix, out, "--defense", "net")
    assert done.returncode == 0, done.stdout + done.stderr
    assert times == {path: path.stat().st_mtime_ns for path in (out / "measurements").glob("*net*")}
    assert sorted(map(json.dumps, load(out))) == sorted(map(json.dumps, before))


def test_a_confined_attack_runs_where_it_is_asked_for_and_on_its_own_number_of_images(measured):
    from manifold_bench.bench.records.results import Results

    rows = Results.load(measured[1]).records
    sizes = rows.groupby(["defense", "attack"]).size().to_dict()
    assert sizes == {("undefended", "clean"): 4, ("net", "clean"): 4, ("net", "fgsm"): 3}


def test_the_plan_shows_what_is_measured_and_a_bad_one_is_refused(measured, tmp_path, capsys):
    assert main(["--matrix", str(measured[0]), "--out", str(measured[1]), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "measurement digits / net / fid: finished" in plan
    assert "measurement digits / undefended / fid: skipped: the defense has no generator" in plan
    (tmp_path / "bad.toml").write_text(RUN.replace("samples = 60", "samples = 1"), encoding="utf-8")
    assert main(["--matrix", str(tmp_path / "bad.toml")]) == 2
    line = capsys.readouterr().err
    assert line.endswith("measurements[0].samples: 1 is not allowed; give a number ≥ 2\n") and line.count("\n") == 1


def test_reconstruction_is_compared_with_the_image_that_the_defense_got(digits):
    measurement = Reconstruction(n=50, noise=0.3, shown=4)
    defense = Blurred(DefenseSpec(shape=(1, 8, 8), num_classes=10))
    values = measurement.measure(defense, {}, digits, 0)
    x = digits.test.images[:50].flatten(1)
    variance = x.var(1, unbiased=False)
    assert values["mean squared error"] == pytest.approx(float(variance.mean()), rel=1e-5)
    assert values["median L2 distance"] == pytest.approx(float((64 * variance).sqrt().median()), rel=1e-5)
    assert values["answered rightly"] == pytest.approx(float((digits.test.labels[:50] == 0).double().mean()))
    assert values["mean squared error, noisy"] > values["mean squared error"]
    rows = measurement.pictures(defense, digits, 0)
    assert rows.shape == (4, 4, 1, 8, 8) and torch.equal(rows[0], digits.test.images[:4])
    assert torch.allclose(rows[1], defense.perceived(rows[0])) and not torch.equal(rows[2], rows[0])
    assert measurement.unsuited(defense) is None
    plain = defense_ref(parse_matrix(MATRIX, "test.toml").defenses[0], digits).load()
    assert measurement.unsuited(plain) == "the defense uses no projection in place of the images"


def test_values_named_by_a_number_are_curves_and_drawn_once_for_all_defenses():
    values = {"found": 1.0, "within 2": 0.5, "within 0.5": 0.25, "within 2, surely": 0.1, "n 3": 3.0}
    assert curves(values) == {"within": [(0.5, 0.25), (2.0, 0.5)]}
    result = {"dataset": "d", "measurement": "m", "status": "ok", "values": values}
    failed = {**result, "defense": "c", "status": "failed", "values": {}}
    made = measurement_plots([{**result, "defense": "a"}, {**result, "defense": "b"}, failed])
    plots = {plot.name: plot.figure for plot in made}
    assert list(plots) == [("d", "m", "within")]
    (axes,) = plots["d", "m", "within"].axes
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert axes.lines[0].get_xydata().tolist() == [[0.5, 0.25], [2.0, 0.5]]
