"""Plots are drawn from what is there, and what is not there is drawn as that."""

import math

import numpy as np
import pytest
from handmade import REJECT, a_run, cell, run

from manifold_bench.bench.metrics.summary import summary
from manifold_bench.bench.records.schema import CALIBRATION, CLEAN
from manifold_bench.bench.report import grids, pictures, plots, style
from manifold_bench.defenses.identity import registered

LABELS = [0] * 10
PIXELS = np.arange(64, dtype=np.uint8).tobytes()


@pytest.fixture(scope="module")
def records():
    return run(
        cell(CLEAN, labels=LABELS, defense="d"),
        cell("pgd", (0.1, 0.2), LABELS, adv=[1] * 4 + [0] * 6, defense="d", images={0: (PIXELS, PIXELS, None)}),
        cell("cw", (0.1, 0.2), LABELS, defense="d", status="failed", reason="why"),
        cell(CLEAN, labels=LABELS, defense="e"),
        cell("pgd", (0.1, 0.2), LABELS, defense="e", status="skipped", reason="why"),
    )


@pytest.fixture(scope="module")
def drawn(records):
    return {one.name: one.figure for one in plots.run_plots(a_run(records, minimal=("deepfool",)), summary(records))}


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_every_plot_is_written_as_svg_and_the_same_each_time(records, tmp_path):
    for folder in (tmp_path / "once", tmp_path / "again"):
        drawn = plots.write_plots(plots.run_plots(a_run(records), summary(records)), folder)
    names = ["digits--linf--curves", "digits--linf--heatmap", "digits--images--1"]
    assert [plot.svg.stem for plot in drawn] == names
    for name in names:
        assert (tmp_path / "once" / f"{name}.svg").read_bytes() == (tmp_path / "again" / f"{name}.svg").read_bytes()


@pytest.mark.parametrize("length", [1, 43, 120])
@pytest.mark.parametrize("many", [1, 12])
@pytest.mark.filterwarnings("error:constrained_layout not applied")  # which says that no room is left for the axes
def test_labels_of_any_length_leave_room_for_the_axes(length, many, tmp_path):
    named = [chr(97 + i) * length for i in range(many)]
    cells = [cell(name, (0.1,), LABELS, defense=named[0]) for name in (CLEAN, *named)]
    cells += [cell(name, (0.1,), LABELS, defense=one) for one in named[1:] for name in (CLEAN, named[0])]
    rows = run(*cells)
    drawn = plots.write_plots(plots.run_plots(a_run(rows, minimal=named), summary(rows)), tmp_path)
    assert {plot.svg.stem for plot in drawn} >= {"digits--linf--curves", "digits--linf--distances"}


def test_the_curve_starts_at_the_clean_accuracy_and_leaves_out_what_has_no_figure(drawn):
    axes = drawn["digits", "linf", "curves"].axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["d"].get_xydata(), [(0, 100), (0.1, 60), (0.2, 60)])
    assert np.isnan(lines["e"].get_ydata()[1:]).all()
    assert "ε" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()


@pytest.mark.parametrize(("norm", "unit"), [("l0", "number of pixels"), ("l2", "pixels span 0 to 1")])
def test_the_axis_of_sizes_names_their_unit(norm, unit):
    drawn = figures_of(
        cell(CLEAN, labels=[0] * 4),
        cell("deepfool", (1, 2), [0] * 4, adv=[1, 1, 0, 0], distance=[1.0, 2.0, 3.0, 4.0], norm=norm),
    )
    for name in ("curves", "distances"):
        assert unit in drawn["digits", norm, name].axes[-1].get_xlabel()


def test_the_heat_map_names_failed_and_skipped_cells_and_hatches_them(drawn):
    axes = drawn["digits", "linf", "heatmap"].axes[0]
    # columns: clean, cw, pgd, worst-case; the last is partial for d, because cw failed
    assert texts(drawn["digits", "linf", "heatmap"]) == [
        "100.0",
        "failed",
        "60.0",
        "60.0‡",
        "100.0",
        "–",
        "skipped",
        "skipped",
    ]
    assert len(axes.patches) == 4
    assert all(patch.get_hatch() for patch in axes.patches)
    np.testing.assert_allclose(axes.images[0].get_array().filled(-1), [[100, -1, 60, 60], [100, -1, -1, -1]])


def test_the_image_grid_shows_the_largest_strength_and_what_the_defense_says(drawn):
    figure = drawn["digits", "images", "1"]
    assert texts(figure) == ["d\npgd\nL∞, ε = 0.2", "is 0", "says 1 ✗", "± 0", "sees"]
    (canvas,) = (np.asarray(image.get_array()) for image in figure.axes[0].images)
    first, _, change, seen = (canvas[:8, left : left + 8] for left in range(0, 36, 9))
    for channel in range(3):
        np.testing.assert_array_equal(first[:, :, channel], np.arange(64).reshape(8, 8))
    assert (change == 128).all()  # nothing was changed
    assert (seen == grids.NO_IMAGE).all()  # the defense makes none
    assert (canvas[:8, 8] == 255).all()


def figures_of(*cells):
    records = run(*cells)
    return {one.name: one.figure for one in plots.run_plots(a_run(records, minimal=("deepfool",)), summary(records))}


def test_risk_over_coverage_clean_and_attacked_with_the_deployed_points():
    scores = [-3, -2, -1, 1]
    figure = figures_of(
        cell(CLEAN, labels=[0] * 4, clean=[0, 0, 1, REJECT], clean_scores=scores),
        cell(CALIBRATION, labels=[0] * 4, clean_scores=[9] * 4),
        cell("a", (0.1, 0.2), [0] * 4, [0, 0, 1, REJECT], {0.1: [1, 0, 1, 0], 0.2: [0, 1, 1, 0]}, clean_scores=scores),
        cell("b", (0.1,), [0] * 4, status="failed", reason="why"),
        cell(CLEAN, labels=[0] * 4, defense="silent"),
        cell("a", (0.2,), [0] * 4, defense="silent"),
    )["digits", "linf", "risk-coverage"]
    above, below = figure.axes
    clean, deployed, attacked, under_attack = (
        line.get_xydata() for axes in (above, below) for line in axes.lines if len(line.get_xdata())
    )
    np.testing.assert_allclose(clean, [(25, 0), (50, 0), (75, 100 / 3), (100, 25)])
    np.testing.assert_allclose(deployed, [(75, 100 / 3)])
    # beaten at 0.1, at 0.2, without an attack, and never: the last is right from its score on
    np.testing.assert_allclose(attacked, [(25, 100), (50, 100), (75, 100), (100, 75)])
    np.testing.assert_allclose(under_attack, [(100, 75)])
    labels = [text.get_text() for text in below.get_legend().get_texts()]
    assert labels == ["d\nmean risk 14.6 %, attacked 93.8 %"]
    assert [axes.get_title("left") for axes in (above, below)] == ["clean", "attacked, ε = 0.2"]
    assert below.get_xlabel() == "coverage, % of inputs accepted"
    assert {axes.get_ylabel() for axes in (above, below)} == {"risk, % of accepted that are wrong"}
    partial = [[line.get_markerfacecolor() for line in axes.lines].count("white") for axes in (above, below)]
    assert partial == [0, 1]


@pytest.mark.parametrize("error_rate", [0.02, 0.5])
def test_the_scale_of_the_risk_ends_where_its_curves_do(error_rate):
    labels, scores = [0] * 100, [float(i) - 100 for i in range(100)]
    answers = [int(i >= 100 * (1 - error_rate)) for i in range(100)]
    drawn = figures_of(
        cell(CLEAN, labels=labels, clean=answers, clean_scores=scores),
        cell(CALIBRATION, labels=labels, clean_scores=scores),
        cell("a", (0.2,), labels, answers, [1] * 100, clean_scores=scores),
    )
    above, below = drawn["digits", "linf", "risk-coverage"].axes
    assert above.get_ylim() == pytest.approx((0, max(1, 105 * error_rate)))
    assert below.get_ylim() == pytest.approx((0, 105))


def test_an_attack_that_seeks_small_perturbations_has_a_curve_over_every_distance():
    near, far = [0.5, 1.0, 1.5, 4.0], [math.inf, 0.25, math.inf, math.inf]
    drawn = figures_of(
        cell(CLEAN, labels=[0] * 4),
        cell("deepfool", (1, 2), [0] * 4, adv={1: [1, 1, 0, 0], 2: [1, 1, 1, 0]}, distance=near, norm="l2"),
        cell("pgd", (1, 2), [0] * 4, adv=[0, 1, 0, 0], distance=far, norm="l2"),
        cell("pgd", (1, 2), [0] * 4, adv=[0, 1, 0, 0], distance=far, norm="l2", defense="ladders only"),
    )
    panels = drawn["digits", "l2", "distances"].axes
    assert [axes.get_title(loc="left") for axes in panels] == ["d"]
    everything, deepfool = (line.get_xydata().tolist() for line in panels[0].lines)
    assert deepfool == [[0, 100], [0.5, 75], [1, 50], [1.5, 25], [4, 0]]
    assert everything == [[0, 100], [0.25, 75], [0.5, 50], [1, 50], [1.5, 25], [2, 25]]  # pgd ends at ε = 2
    labels = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert labels == ["all attacks, up to the largest ε = 2\nmedian 1.000", "deepfool\nmedian 1.250"]


def test_a_defense_that_neither_rejects_nor_is_calibrated_has_no_risk_coverage_curve():
    scores = [-3, -2, -1, 1]
    drawn = figures_of(
        *(cell(CLEAN, labels=[0] * 4, clean=[0, 0, 0, last], clean_scores=scores, defense=name) for name, last in BOTH),
        *(cell("a", (0.2,), [0] * 4, [0, 0, 0, last], clean_scores=scores, defense=name) for name, last in BOTH),
    )
    labels = [text.get_text() for text in drawn["digits", "linf", "risk-coverage"].axes[1].get_legend().get_texts()]
    assert [label.split("\n")[0] for label in labels] == ["shy"]


BOTH = (("shy", REJECT), ("plain", 1))


@pytest.mark.parametrize("others", [(), ("alien",), ("alien", "gmvae", "zzz", "undefended")])
def test_the_look_of_a_defense_follows_from_its_name(others):
    looks = style.defense_styles(["pgd-training", "mine", *others], own=["mine"])
    alone = style.defense_styles(["pgd-training", "mine"], own=["mine"])
    assert {name: looks[name] for name in alone} == alone
    assert next(iter(looks)) == "mine" and looks["mine"]["color"] == "#000000"
    assert len({(look["color"], look["ls"], look["marker"]) for look in looks.values()}) == len(looks)
    assert looks.get("undefended", {}).get("ls", "--") == "--"
    assert len({look["color"] for look in looks.values()}) == len(looks)  # while there are enough of them


def test_every_registered_defense_has_a_look_of_its_own():
    ours = {name for name, point in registered("defenses").items() if point.dist.name == "manifold-bench"}
    assert {style.REFERENCE, *style.PLACES} == ours
    looks = style.defense_styles([*ours, *(f"unknown {number}" for number in range(20))])
    assert len({(look["color"], look["ls"], look["marker"]) for look in looks.values()}) == len(ours) + 20


def test_without_scores_there_is_no_risk_coverage_curve(drawn):
    assert ("digits", "linf", "risk-coverage") not in drawn


def test_noise_is_shown_as_noise_and_has_neither_curve_nor_heat_map():
    drawn = figures_of(
        cell(CLEAN, labels=[0] * 4),
        cell(CALIBRATION, labels=[0] * 4, images={0: (PIXELS,) * 3}),
        cell(
            "fool",
            labels=[-1] * 4,
            aims=[0, 1] * 2,
            samples=[0, 0, 1, 1],
            adv=[REJECT, 1, REJECT, REJECT],
            norm="fooling",
            images=dict.fromkeys(range(4), (PIXELS,) * 3),
        ),
    )
    assert set(drawn) == {("digits", "images", "1")}
    # four images an input, and of its aims the one that was reached
    assert texts(drawn["digits", "images", "1"]) == [
        "d\nfool\nfooling",
        "noise",
        "says 1 ✗",
        "± 0",
        "sees",
        "noise",
        "rejected",
        "± 0",
        "sees",
    ]


def test_colour_images_keep_their_colours():
    pixels = np.arange(3 * 4 * 5, dtype=np.uint8)
    shown = pictures.levels(pictures.pixels(pixels.tobytes(), [3, 4, 5]))
    np.testing.assert_array_equal(shown.transpose(2, 0, 1).ravel(), pixels)


def test_without_images_there_is_no_grid():
    plain = run(cell(CLEAN), cell())
    assert not list(plots._shown(plain))
