"""What a matrix may claim, and what a run keeps of it."""

from __future__ import annotations

import json
import math

import pytest
from claimed import CLAIM
from handmade import RUN

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.claims import Claim, claims_of
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.records.provenance import stored_provenance

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
        ({"defense": "gmva"}, ".defense: 'gmva' is not in this matrix; did you mean 'gmvae'? it has: undefended,"),
        ({"dataset": "mnist"}, ".dataset: 'mnist' is not in this matrix; did you mean 'mnist5k'?"),
        ({"attack": "fgms", "eps": 0.1}, ".attack: 'fgms' is not in this matrix; did you mean 'fgsm'?"),
        ({"attack": "pgd"}, ".norm: missing; give one of the norms of 'pgd': linf, l2"),
        ({"attack": "pgd", "norm": "linf"}, ".eps: missing; give one of the sizes of 'pgd': 0.1, 0.2"),
        ({"attack": "pgd", "norm": "linf", "eps": 0.3}, ".eps: 'pgd' is not run at 0.3; its sizes are 0.1, 0.2"),
        (
            {"attack": "fgsm", "eps": 0.1, "defense": "undefended"},
            ".attack: 'fgsm' does not run on 'digits' with 'undefended'",
        ),
        ({"attack": "noise"}, ".attack: 'noise' does not run on 'digits' with 'gmvae'"),
        ({"defense": "again", "dataset": "mnist5k"}, ".defense: 'again' does not run on 'mnist5k'"),
        ({"figure": "acuracy"}, ".figure: \"acuracy\" is not allowed; give 'accuracy', "),
        ({"figure": None}, ": give either a figure or a measurement"),
        ({"figure": None, "measurement": "is"}, ".measurement: 'is' is not in this matrix"),
        (
            {"figure": None, "measurement": "fid", "defense": "again", "published": 3},
            ".measurement: 'fid' does not run",
        ),
        ({"published": 97.9}, ".published: 97.9 is not allowed for 'accuracy'; give a share in [0, 1] or [count, of]"),
        ({"published": [3, 2]}, ".published: [3, 2] is not allowed; give a number ≥ 0, [count, of], or true or false"),
        ({"published": "97.9 %"}, '.published: "97.9 %" is not allowed'),
        ({"published": True}, ".published: true is not allowed for 'accuracy'"),
        ({"rejected_by": "again"}, ".rejected_by: 'accuracy' needs none"),
        ({"figure": "recovered"}, ".rejected_by: missing; name the defense that rejects"),
        (
            {"strongest": {"norm": "linf", "eps": 0.3}},
            ".strongest[0]: no attack of this matrix has L∞ ε = 0.3; sizes in that norm",
        ),
        ({"strongest": {"norm": "l3", "eps": 0.3}}, ".strongest[0].norm: \"l3\" is not allowed; give 'linf', "),
        ({"central": True}, ".central: needs `published`, `strongest`, and one of the figures accuracy, "),
        ({"figure": "pairs"}, ".attack: missing; figure = 'pairs' needs the label of an attack"),
        ({"figure": "peak_error", "attack": "fgsm", "eps": 0.1}, ".eps: 'peak_error' covers every ε"),
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
