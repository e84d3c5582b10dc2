"""Claims: every figure on records small enough to count, what a matrix may say, and when a claim falls."""

from __future__ import annotations

import json
import math

import pytest
from handmade import REJECT, RUN, cell, run
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.metrics.claims import (
    detection_auc,
    fallen,
    fooled,
    largest_drop,
    over_ladder,
    pairs,
    peak_error,
    reclassified_right,
    recovered,
)
from manifold_bench.bench.metrics.robustness import attacked_within, with_figures, worst_case
from manifold_bench.bench.metrics.shares import MissingCells, wilson
from manifold_bench.bench.planning.claims import Budget, Claim, claims_of
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.records.provenance import stored_provenance
from manifold_bench.bench.records.schema import CLEAN
from manifold_bench.bench.report.claims import (
    RULE,
    claims_plots,
    claims_tables,
    conclusions,
    contradicted,
    measured,
    published_text,
    under_strongest,
)

# --- figures ---------------------------------------------------------------------------------------------------------


def test_pairs_counts_what_was_taken_for_its_aim():
    labels, samples = [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]
    aims = [1, 2, 3, 0, 2, 3]
    answers = [1, REJECT, 2, 0, 1, 3]  # as aimed; rejected; wrong but not as aimed; as aimed; right; as aimed
    rows = cell(labels=labels, samples=samples, aims=aims, adv=answers)
    assert pairs(rows) == wilson(3, 6)
    invalid = cell(labels=labels, samples=samples, aims=aims, adv=answers, invalid=[0])
    assert pairs(invalid) == wilson(2, 6)


def test_a_pair_that_is_the_aim_without_an_attack_is_no_pair():
    rows = cell(labels=[0, 0], samples=[0, 0], aims=[1, 2], clean=[1, 1], adv=[1, 2])
    assert pairs(rows) == wilson(1, 1)


def test_pairs_without_aims_are_refused():
    with pytest.raises(MissingCells, match="no aim"):
        pairs(cell())


def test_fooled_counts_accepted_noise():
    noise = {"norm": "fooling", "labels": [-1] * 4, "clean": [REJECT] * 4}
    assert fooled(cell(**noise, adv=[3, REJECT, 5, REJECT])) == wilson(2, 4)
    aimed = cell(**noise, samples=[0, 0, 1, 1], aims=[3, 4, 3, 4], adv=[3, 3, REJECT, REJECT])
    assert fooled(aimed) == wilson(1, 4)  # the second answer is not what was aimed at
    assert fallen(aimed) == wilson(1, 2)  # of the two images, one


def test_of_several_seeds_any_may_reach_the_aim_of_a_pair():
    one, other = (
        cell("a", labels=[0] * 4, aims=[1, 2] * 2, samples=[0, 0, 1, 1], adv=adv, seed=seed)
        for seed, adv in ((0, [1, 0, 0, 0]), (1, [1, 2, 0, 1]))
    )
    assert pairs(run(one, other))[::3] == (0.5, 4)  # the last was to be a 2
    assert fooled(run(one, other))[::3] == (0.75, 4)
    assert fallen(run(one, other))[::3] == (1, 2)


def test_noise_of_another_seed_is_other_noise():
    one, other = (cell("a", norm="fooling", labels=[-1] * 2, adv=[3, REJECT], seed=seed) for seed in (0, 1))
    for figure in (fooled, fallen):
        assert figure(run(one, other))[::3] == (0.5, 4)


def test_fallen_is_what_attacks_did_and_not_what_was_wrong_before():
    weak = cell("weak", labels=[0, 1, 2, 3], clean=[0, 1, 0, REJECT], adv=[1, 1, 0, REJECT])
    strong = cell("strong", labels=[0, 1, 2, 3], clean=[0, 1, 0, REJECT], adv=[REJECT, 1, 0, 1])
    assert fallen(weak) == wilson(1, 4)
    assert fallen(run(weak, strong)) == wilson(2, 4)


LADDER = cell(
    "fgsm", eps=(0.1, 0.2, 0.3), labels=[0, 1, 2, 3], clean=[0, 1, 2, 0],
    adv={0.1: [0, 2, REJECT, REJECT], 0.2: [1, 2, REJECT, REJECT], 0.3: [REJECT, REJECT, REJECT, 3]},
)  # fmt: skip


def test_outcomes_over_a_ladder_begin_with_the_clean_inputs():
    curve = over_ladder(LADDER)
    assert curve["eps"].tolist() == [0, 0.1, 0.2, 0.3]
    assert curve["accuracy"].tolist() == [0.75, 0.25, 0, 0.25]
    assert curve["error"].tolist() == [0.25, 0.25, 0.5, 0]
    assert curve["rejection"].tolist() == [0, 0.5, 0.5, 0.75]
    assert (curve[["accuracy", "error", "rejection"]].sum(axis=1) == 1).all()


def test_the_peak_of_the_error_and_the_drop_of_the_rejection():
    assert peak_error(LADDER) == (0.2, wilson(2, 4))
    assert largest_drop(LADDER) == 0
    falling = cell(eps=(0.1, 0.2, 0.3), adv={0.1: [REJECT] * 3 + [0], 0.2: [REJECT] + [0] * 3, 0.3: [REJECT] * 4})
    assert largest_drop(falling) == 0.5


def test_reclassification_is_joined_by_input_and_size():
    labels = [0, 1, 2, 3, 4]
    rejecting = cell("a", labels=labels, adv=[REJECT, REJECT, REJECT, 3, 0])
    answering = cell("a", labels=labels, adv=[0, 1, 0, 3, REJECT], defense="r")
    assert reclassified_right(answering, rejecting) == wilson(2, 3)
    assert recovered(answering, rejecting) == wilson(2, 3)
    still = cell("a", labels=labels, adv=[0, REJECT, 0, 3, REJECT], defense="r")
    assert reclassified_right(still, rejecting) == wilson(1, 2)
    assert recovered(still, rejecting) == wilson(1, 3)


def test_reclassification_of_the_clean_inputs():
    rejecting = cell(CLEAN, labels=[0, 1, 2], clean=[REJECT, REJECT, 2])
    answering = cell(CLEAN, labels=[0, 1, 2], clean=[0, 2, 2], defense="r")
    assert recovered(answering, rejecting) == wilson(1, 2)


def test_reclassification_of_different_images_is_refused():
    rejecting = cell("a", adv=[REJECT] * 4)
    moved = cell("a", defense="r")
    with pytest.raises(MissingCells, match="not shown the same images"):
        recovered(moved.assign(linf=0.09), rejecting)
    with pytest.raises(MissingCells, match="share 3 of 4"):
        recovered(moved.iloc[:3], rejecting)


def test_the_area_under_the_curve_counts_pairs_in_which_the_attacked_input_looks_worse():
    """Of the nine pairs (clean, attacked) of {1, 2, 3} and {2, 4, 5} the attacked one is above in 7 and level in 1."""
    rows = cell(labels=(0, 1, 2), clean_scores=(1, 2, 3), adv_scores=(2, 4, 5))
    area, low, high = detection_auc(rows)
    assert area == pytest.approx((7 + 0.5) / 9) and 0 <= low <= area <= high <= 1
    apart, together = (
        detection_auc(cell(clean_scores=(1, 2, 3, 4), adv_scores=s)) for s in ((5, 6, 7, 8), (1, 2, 3, 4))
    )
    assert apart == (1, 1, 1) and together[0] == 0.5
    with pytest.raises(MissingCells, match="scores"):
        detection_auc(cell())


@pytest.mark.parametrize("status", ["failed", "skipped"])
@pytest.mark.parametrize("figure", [pairs, fooled, fallen, peak_error, largest_drop, detection_auc])
def test_no_figure_over_cells_that_are_not_ok(figure, status):
    with pytest.raises(MissingCells):
        figure(cell(status=status, reason="out of memory"))


# --- matrix files ----------------------------------------------------------------------------------------------------

MATRIX = {
    "datasets": [{"name": "digits", "n": 4}, "mnist5k"],
    "defenses": ["undefended", "gmvae", {"name": "gmvae", "label": "again", "datasets": ["digits"]}],
    "attacks": [
        {"name": "pgd", "eps": [0.1, 0.2]},
        {"name": "pgd", "norm": "l2", "eps": [1.0]},
        {"name": "fgsm", "label": "fgsm", "eps": [0.1, 0.2], "ladder": False, "defenses": ["gmvae", "again"]},
        {"name": "noise", "eps": [0.1], "datasets": ["mnist5k"]},
    ],
    "measurements": [
        {"name": "manifold_bench.bench.measurements.frechet:FrechetDistance", "label": "fid", "defenses": ["gmvae"]}
    ],
}
CLAIM = {
    "source": "a paper, table 1", "text": "right", "published": 0.9, "figure": "accuracy",
    "dataset": "digits", "defense": "gmvae",
}  # fmt: skip


def claims(*entries: dict) -> tuple[Claim, ...]:
    return parse_matrix({**MATRIX, "claims": [{**CLAIM, **entry} for entry in entries]}, "m.toml").claims


def refused(**entry: object) -> str:
    with pytest.raises(InputError) as caught:
        claims({}, entry)
    text = str(caught.value)
    assert text.startswith("m.toml: claims[1]") and "\n" not in text
    return text.removeprefix("m.toml: claims[1]")


def test_norm_and_size_follow_where_there_is_one():
    assert (claims({})[0].norm, claims({})[0].eps) == ("none", 0.0)
    only = claims({"attack": "pgd", "norm": "l2"})[0]
    assert (only.norm, only.eps) == ("l2", 1.0)
    ladder = claims({"attack": "fgsm", "figure": "peak_error"})[0]
    assert (ladder.norm, ladder.eps) == ("linf", None)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"defense": "gmva"}, ".defense: 'gmva' is not in this matrix; did you mean 'gmvae'?; it has: undefended,"),
        ({"dataset": "mnist"}, ".dataset: 'mnist' is not in this matrix; did you mean 'mnist5k'?"),
        ({"attack": "fgms", "eps": 0.1}, ".attack: 'fgms' is not in this matrix; did you mean 'fgsm'?"),
        ({"attack": "pgd"}, ".norm: missing; 'pgd' is run in linf, l2"),
        ({"attack": "pgd", "norm": "linf"}, ".eps: missing; 'pgd' is run with 0.1, 0.2"),
        ({"attack": "pgd", "norm": "linf", "eps": 0.3}, ".eps: 'pgd' is not run with 0.3; it is with 0.1, 0.2"),
        ({"attack": "fgsm", "eps": 0.1, "defense": "undefended"}, ".attack: 'fgsm' is confined to others"),
        ({"attack": "noise"}, ".attack: 'noise' is confined to others than 'digits' × 'gmvae'"),
        ({"defense": "again", "dataset": "mnist5k"}, ".defense: 'again' is confined to others than 'mnist5k'"),
        ({"figure": "acuracy"}, ".figure: \"acuracy\" is not allowed; give 'accuracy', "),
        ({"figure": None}, ": give a figure or a measurement, one of the two"),
        ({"figure": None, "measurement": "is"}, ".measurement: 'is' is not in this matrix"),
        ({"figure": None, "measurement": "fid", "defense": "again", "published": 3}, ".measurement: 'fid' is confined"),
        ({"published": 97.9}, ".published: 97.9 is not what 'accuracy' can be; give a share in [0, 1] or [count, of]"),
        ({"published": [3, 2]}, ".published: [3, 2] is not allowed; give a number ≥ 0, [count, of], or true or false"),
        ({"published": "97.9 %"}, '.published: "97.9 %" is not allowed'),
        ({"published": True}, ".published: true is not what 'accuracy' can be"),
        ({"rejected_by": "again"}, ".rejected_by: not for figure = 'accuracy'"),
        ({"figure": "recovered"}, ".rejected_by: missing; name the defense that rejects"),
        ({"strongest": {"norm": "linf", "eps": 0.3}}, ".strongest[0]: no attack here has L∞ ε = 0.3; in that norm"),
        ({"strongest": {"norm": "l1", "eps": 0.3}}, ".strongest[0].norm: \"l1\" is not allowed; give 'linf', "),
        ({"central": True}, ".central: needs published, strongest, and a figure that can fall: accuracy, "),
        ({"figure": "pairs"}, ".attack: missing; figure = 'pairs' is one of an attack"),
        ({"figure": "peak_error", "attack": "fgsm", "eps": 0.1}, ".eps: 'peak_error' is taken over every ε"),
        (
            {"figure": "peak_error", "attack": "pgd", "norm": "l2"},
            ".figure: 'peak_error' needs an attack with ladder =",
        ),
        ({"sourc": "x"}, ".sourc: unknown key; did you mean 'source'?"),
    ],
)
def test_a_claim_about_what_is_not_there_is_refused(entry, expected):
    assert refused(**entry).startswith(expected)


def test_claims_survive_the_way_through_a_run(tmp_path):
    made = claims(
        {"strongest": {"norm": "linf", "eps": 0.1}},
        {"figure": "rejection_monotone", "published": True, "attack": "fgsm"},
        {"figure": "recovered", "published": [110, 181], "rejected_by": "again", "recalled": True},
    )
    noise = Claim(source="s", text="t", figure="fooled", dataset="d", defense="d", norm="fooling", eps=math.inf)
    stored = [one.model_dump() for one in (*made, noise)]
    (tmp_path / "run.json").write_text(json.dumps(RUN | {"matrix": RUN["matrix"] | {"claims": stored}}))
    assert claims_of(stored_provenance(tmp_path), tmp_path) == (*made, noise)
    assert claims_of(stored_provenance(tmp_path / "elsewhere"), tmp_path) == ()


def test_a_damaged_run_is_said_in_one_line(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        stored_provenance(tmp_path)
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        claims_of({"matrix": {"claims": [{}]}}, tmp_path)


# --- published, measured, strongest ----------------------------------------------------------------------------------


def claim(**values: object) -> Claim:
    """A claim with norm and ε as the matrix would have filled them in: of the handmade cells."""
    cell = {"norm": "none", "eps": 0.0} if values.get("attack", CLEAN) == CLEAN else {"norm": "linf", "eps": 0.1}
    return Claim(**{**CLAIM, **cell, "defense": "d", **values})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"published": 0.9797}, "97.97"),
        ({"published": 0.041, "recalled": True}, "4.10 (recalled)"),
        ({"published": (110, 181), "figure": "recovered"}, "110 of 181"),
        ({"published": (0, 9000), "figure": "pairs"}, "0 of 9,000"),
        ({"published": True, "figure": "rejection_monotone"}, "yes"),
        ({"published": 50.4, "figure": None, "measurement": "fid"}, "50.4"),
        ({"published": None}, "–"),
    ],
)
def test_published_numbers_stand_as_in_the_paper(values, text):
    assert published_text(claim(**values)) == text


CLEAN_CELL = cell(CLEAN, labels=[0, 1, 2, 3], clean=[0, 1, REJECT, 0])
WEAK = cell("weak", eps=(0.1, 0.2), labels=[0, 1, 2, 3], clean=[0, 1, REJECT, 0], adv={0.1: [0, 1, REJECT, 0],
            0.2: [1, 1, REJECT, 0]})  # fmt: skip
STRONG = cell("strong", eps=(0.1,), labels=[0, 1, 2, 3], clean=[0, 1, REJECT, 0], adv=[1, 1, 3, 0])
AT = Budget(norm="linf", eps=0.1)


def test_a_figure_of_the_named_cell():
    assert measured(claim(), CLEAN_CELL).text == "50.00 [15.00, 85.00], n = 4"
    assert measured(claim(published=(1, 4)), CLEAN_CELL).text == "2 of 4: 50.00 [15.00, 85.00]"
    assert measured(claim(defense="other"), CLEAN_CELL) is None


def test_a_cell_that_failed_has_a_reason_and_no_number():
    failed = cell("weak", status="failed", reason="out of memory")
    with pytest.raises(MissingCells, match="failed: out of memory"):
        measured(claim(attack="weak"), failed)
    unseen = Budget(norm="l2", eps=1)
    (table,) = claims_tables(run(CLEAN_CELL, failed), [claim(attack="weak", strongest=(AT, unseen))])
    assert table.rows[0][3] == "no figure (1)"
    assert table.rows[0][4] == "L∞ ε = 0.1: accepted and right no figure (2); L2 ε = 1: accepted and right –"
    assert table.notes[0] == "failed: out of memory"


def test_the_strongest_attack_is_the_worst_case_per_input():
    found = under_strongest(claim(figure="error"), AT, run(CLEAN_CELL, WEAK, STRONG))
    assert found.share == wilson(3, 4)
    assert "strongest single attack: strong, 75.00" in found.remark


@settings(deadline=None, max_examples=10)
@given(st.lists(st.lists(st.sampled_from([REJECT, 0, 1]), min_size=5, max_size=5), min_size=1, max_size=3))
def test_the_strongest_attack_agrees_with_the_tables_of_the_run(answers):
    rows = run(*(cell(f"a{i}", labels=[0, 0, 0, 1, 1], adv=adv) for i, adv in enumerate(answers)))
    table = with_figures([worst_case(rows, 0.1)]).iloc[0]
    for figure in ("accuracy", "error", "robust_accuracy", "strict_robust_accuracy"):
        share = under_strongest(claim(figure=figure), AT, rows).share
        assert share is not None and share.value == table[figure]
    assert attacked_within(rows, 0.1)[1] == "ok"


def test_a_table_per_source_with_everything_beside_everything():
    entries = [
        claim(strongest=(AT,)),
        claim(source="figure 3", figure="error", attack="weak", published=None, text="wrong"),
        claim(text="elsewhere", dataset="mnist"),
    ]
    first, second = claims_tables(run(CLEAN_CELL, WEAK, STRONG), entries)
    assert first.title.startswith("a paper, table 1") and second.title.startswith("figure 3")
    assert first.rows[0] == [
        "right", "digits, d", "90.00", "50.00 [15.00, 85.00], n = 4",
        "L∞ ε = 0.1: accepted and right 25.00 [4.56, 69.94], n = 4 (1)",
    ]  # fmt: skip
    assert "strongest single attack: strong" in first.notes[0]
    assert first.rows[1][3:] == ["–", "–"]
    assert second.rows[0][1:4] == ["digits, d × weak, L∞ ε = 0.1", "–", "25.00 [4.56, 69.94], n = 4"]


def test_a_measurement_stands_beside_its_publication():
    result = {
        "dataset": "digits", "defense": "d", "measurement": "fid", "status": "ok", "reason": "", "headline": "fid",
        "values": {"fid": 51.23456, "other": 1.0},
    }  # fmt: skip
    asked = claim(figure=None, measurement="fid", published=50.4)
    assert measured(asked, CLEAN_CELL, [result]).text == "51.23"
    assert measured(asked, CLEAN_CELL, []) is None
    with pytest.raises(MissingCells, match="skipped: no generator"):
        measured(asked, CLEAN_CELL, [{**result, "status": "skipped", "reason": "no generator"}])


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("published", "figure", "count", "n", "falls"),
    [
        ((0, 9000), "pairs", 0, 200, False),
        ((0, 9000), "pairs", 1, 200, True),  # 0.09 % at least, where 0.04 % at most was published
        ((0, 9), "pairs", 1, 200, False),  # nine pairs say little
        (0.05, "error", 9, 100, False),
        (0.05, "error", 11, 100, True),
        (0.95, "accuracy", 91, 100, False),
        (0.95, "accuracy", 89, 100, True),
        (0.95, "accuracy", 100, 100, False),
    ],
)
def test_a_claim_falls_where_the_interval_is_on_the_wrong_side(published, figure, count, n, falls):
    assert contradicted(claim(published=published, figure=figure), wilson(count, n)) is falls


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 50), st.integers(1, 50), st.sampled_from(["error", "accuracy"]))
def test_a_claim_never_falls_by_being_confirmed(count, n, figure):
    count = min(count, n)
    assert not contradicted(claim(published=(count, n), figure=figure), wilson(count, n))
    assert not contradicted(claim(published=count / n, figure=figure), wilson(count, n))


CENTRAL = claim(published=0.0, figure="error", text="no attack gets through", strongest=(AT,), central=True)


def test_the_conclusion_tells_the_numbers_it_rests_on():
    text, rule = conclusions(run(CLEAN_CELL, WEAK, STRONG), [CENTRAL, claim()])
    assert rule == RULE and conclusions(CLEAN_CELL, [claim()]) == []
    assert "no attack gets through" in text and "\n" not in text
    assert "Published: 0.00." in text
    assert "accepted and wrong 75.00 [30.06, 95.44], n = 4 (strongest single attack: strong, 75.00" in text
    assert "Median L∞ distance at which an input falls: 0.100, n = 4." in text
    assert "Clean rejection rate: 25.00" in text
    assert "**the claim falls: as the paper did it, L∞ ε = 0.1**" in text


def test_the_distance_told_is_that_of_inputs_which_every_attack_tried():
    few = cell("few", labels=[0, 1], adv=[1, 0], distance=[0.05, 0.05], samples=[0, 1])
    text = conclusions(run(CLEAN_CELL, WEAK, few), [CENTRAL])[0]
    assert "Median L∞ distance at which an input falls: 0.050, n = 2." in text


def conclusion(*cells: object) -> str:
    return conclusions(run(*cells), [CENTRAL])[0]


def test_a_claim_stands_only_where_nothing_is_missing():
    right = cell(CLEAN)
    holds = cell("weak", adv=[REJECT, 1, 2, 3])
    assert "the claim stands against the attacks of this run" in conclusion(right, holds)
    assert "the claim is open" in conclusion(right, holds, cell("strong", status="failed", reason="died"))
    assert "the claim is open" in conclusion(right, cell("strong", status="failed", reason="died"))
    assert "the claim is open" in conclusion(right)
    assert "the claim stands" in conclusion(right, holds, cell("other", status="skipped", reason="no use"))
    died = cell("strong", status="failed", reason="died")
    assert "the claim falls" in conclusion(cell("weak", adv=[1, 1, 2, 3]), died)


def test_a_claim_falls_by_the_papers_own_attack():
    rows = cell("weak", adv=[1, 1, 2, 3])
    asked = claim(published=(0, 9000), figure="fooled", attack="weak", strongest=(AT,), central=True)
    (text, _) = conclusions(run(CLEAN_CELL, rows), [asked])
    assert "1 of 4: 25.00" in text and "**the claim falls: as the paper did it, L∞ ε = 0.1**" in text


def test_fooling_has_a_conclusion_too():
    noise = {"norm": "fooling", "labels": [-1, -1], "clean": [REJECT, REJECT]}
    budget = Budget(norm="fooling", eps=math.inf)
    asked = claim(published=(0, 1000), figure="fooled", attack="a", norm="fooling", eps=math.inf, strongest=(budget,),
                  central=True)  # fmt: skip
    rows = run(cell(CLEAN), cell("a", **noise), cell("b", **noise, adv=[1, REJECT]))
    text, _ = conclusions(rows, [asked])
    assert "0 of 2: 0.00" in text and "made accepted and wrong 50.00" in text and "the claim falls" in text
    assert "median" not in text


# --- plots -----------------------------------------------------------------------------------------------------------


def test_a_plot_for_every_ladder_that_a_claim_is_about():
    asked = [
        claim(figure="peak_error", attack="fgsm", eps=None, source="a paper, figure 3"),
        claim(figure="rejection_monotone", attack="fgsm", eps=None, published=True),
        claim(figure="peak_error", attack="fgsm", eps=None, defense="absent"),
        claim(),
    ]
    ((parts, figure, _),) = claims_plots(run(CLEAN_CELL, LADDER), asked)
    assert parts == ("digits", "d", "fgsm", "linf", "outcomes")
    (axes,) = figure.axes
    assert "a paper, figure 3" in axes.get_title(loc="left")
    labels = [line.get_label() for line in axes.lines]
    assert labels == ["accepted and right", "rejected", "accepted and wrong"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[75, 25, 0, 25], [0, 50, 50, 75], [25, 25, 50, 0]]
