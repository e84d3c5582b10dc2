"""Claims of papers in a matrix file (`[[claims]]`), and checks that the matrix has everything that they name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from manifold_bench.attacks.norms import Norm
from manifold_bench.bench.errors import InputError, one_of
from manifold_bench.bench.metrics.claims import MEASUREMENT, RULES, Rule
from manifold_bench.bench.planning.sizes import Fractional, NormName
from manifold_bench.bench.records.schema import CLEAN
from manifold_bench.bench.text import eps_text, norm_of, norm_text
from manifold_bench.defenses.errors import one_line
from manifold_bench.defenses.identity import JsonObject

if TYPE_CHECKING:
    from manifold_bench.bench.planning.matrix import AttackChoice, Matrix


Text = Annotated[str, Field(min_length=1)]

Published = float | tuple[int, int] | bool | None
"""A share, a number, a count as (count, of), or a trend; None if nothing was published."""


class Budget(BaseModel):
    """The perturbation budget of the strongest attack: any attack of the run in that norm, at any ε up to `eps`.

    eps: infinite for norms without sizes (unrestricted, fooling).
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    norm: NormName
    eps: Annotated[Fractional, Field(gt=0)] = math.inf

    def __str__(self) -> str:
        return where(self.norm, self.eps)


class Claim(BaseModel):
    """One published number or statement.

    source: the paper and the place in it; claims of one source share a table. text: the claim in words.
    published: a share in [0, 1], a count as [count, of], a number for distances and measurements, or true or false for
    a trend; left out if nothing was published. recalled: whether the number is from memory, not from the paper's text.
    figure, measurement: the figure or the measurement that it is compared with; exactly one of the two. attack, norm,
    eps: cell from whose records the figure is computed; norm and eps may be left out if the attack has only one.
    rejected_by: label of the defense whose rejected inputs `defense` answers, for figures of reclassification.
    strongest: perturbation budgets for which the worst case over all attacks is shown next to the claim. central:
    whether the report has a paragraph that says whether the claim holds.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    source: Text
    text: Text
    published: Published = None
    recalled: bool = False
    figure: str | None = None
    measurement: Text | None = None
    dataset: Text
    defense: Text
    attack: Text = CLEAN
    norm: Annotated[Literal[Norm, "none"], BeforeValidator(norm_of)] | None = None
    eps: Annotated[Fractional, Field(ge=0)] | None = None
    rejected_by: Text | None = None
    strongest: tuple[Budget, ...] = ()
    central: bool = False

    @property
    def rule(self) -> Rule:
        """The rule by which its figure is computed and compared."""
        return MEASUREMENT if self.figure is None else RULES[self.figure]

    @field_validator("figure")
    @classmethod
    def _known_figure(cls, value: str | None) -> str | None:
        if value is not None and value not in RULES:
            raise ValueError(f"{json.dumps(value)} is not allowed; give {', '.join(map(repr, RULES))}")
        return value

    @field_validator("published", mode="plain")
    @classmethod
    def _number_count_or_trend(cls, value: object) -> Published:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float) and np.isfinite(value) and value >= 0:
            return float(value)
        if isinstance(value, list | tuple) and len(value) == 2 and all(type(part) is int for part in value):
            count, of = value
            if 0 <= count <= of and of > 0:
                return count, of
        raise ValueError(f"{json.dumps(value)} is not allowed; give a number ≥ 0, [count, of], or true or false")

    @field_validator("strongest", mode="before")
    @classmethod
    def _one_budget_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value


def where(norm: str, eps: float) -> str:
    """Return norm and size as text, `L∞ ε = 0.1`; for a norm without sizes its name alone."""
    return norm_text(norm) if np.isinf(eps) else f"{norm_text(norm)} ε = {eps_text(eps)}"


def resolved_claims(matrix: Matrix, claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """Return the claims with norm and ε filled in; raises InputError if they name anything outside the matrix."""
    return tuple(_resolved(matrix, claim, f"{matrix.source}: claims[{i}]") for i, claim in enumerate(claims))


def _resolved(matrix: Matrix, claim: Claim, place: str) -> Claim:
    one_of(f"{place}.dataset", claim.dataset, [entry.name for entry in matrix.datasets])
    defending = {choice.label: choice for choice in matrix.defenses}
    if (claim.figure is None) == (claim.measurement is None):
        raise InputError(f"{place}: give either a figure or a measurement, exactly one of the two")
    joins = claim.rule.joins
    if joins != (claim.rejected_by is not None):
        needed = "missing; name the defense that rejects" if joins else f"{claim.figure!r} needs none; leave it out"
        raise InputError(f"{place}.rejected_by: {needed}")
    for key in ("defense", "rejected_by"):
        name = getattr(claim, key)
        if name is not None:
            one_of(f"{place}.{key}", name, defending)
            _check_applies(place, key, name, defending[name].defends(claim.dataset), claim)
    allowed, fits = PUBLISHED[claim.rule.kind]
    if claim.published is not None and not fits(claim.published):
        given, name = json.dumps(claim.published), claim.figure or claim.measurement
        raise InputError(f"{place}.published: {given} is not allowed for {name!r}; give {allowed}")
    _check_strongest(matrix, claim, place)
    if claim.measurement is not None:
        one_of(f"{place}.measurement", claim.measurement, [choice.label for choice in matrix.measurements])
        chosen = next(choice for choice in matrix.measurements if choice.label == claim.measurement)
        _check_applies(place, "measurement", chosen.label, chosen.applies_to(claim.dataset, claim.defense), claim)
    elif claim.attack != CLEAN:
        return _with_cell(matrix, claim, place)
    if claim.rule.ladder or claim.figure in ("pairs", "fooled"):
        raise InputError(f"{place}.attack: missing; figure = {claim.figure!r} needs the label of an attack")
    return claim.model_copy(update={"norm": "none", "eps": 0.0})


def _check_strongest(matrix: Matrix, claim: Claim, place: str) -> None:
    """Check that attacks have the budgets of a claim, and that a central claim is complete; raises InputError."""
    for number, budget in enumerate(claim.strongest):
        usable = [choice for choice in matrix.attacks if choice.applies_to(claim.dataset, claim.defense)]
        sizes = {eps for choice in usable if choice.attack.norm == budget.norm for eps in choice.eps}
        if budget.eps not in sizes:
            known = ", ".join(eps_text(eps) for eps in sorted(sizes)) or "none"
            raise InputError(
                f"{place}.strongest[{number}]: no attack of this matrix has {budget}; sizes in that norm: {known}"
            )
    if claim.central and not (claim.rule.better and claim.published is not None and claim.strongest):
        judged = ", ".join(name for name, rule in RULES.items() if rule.better)
        raise InputError(f"{place}.central: needs `published`, `strongest`, and one of the figures {judged}")


def _with_cell(matrix: Matrix, claim: Claim, place: str) -> Claim:
    """Return the claim with the norm and the ε of its attack; raises InputError."""
    one_of(f"{place}.attack", claim.attack, [CLEAN, *dict.fromkeys(choice.label for choice in matrix.attacks)])
    named = [choice for choice in matrix.attacks if choice.label == claim.attack]
    norms = [str(choice.attack.norm) for choice in named]
    norm = claim.norm
    if norm is None:
        if len(norms) > 1:
            raise InputError(f"{place}.norm: missing; give one of the norms of {claim.attack!r}: {', '.join(norms)}")
        norm = named[0].attack.norm
    one_of(f"{place}.norm", norm, norms)
    choice = named[norms.index(norm)]
    for defense in filter(None, (claim.defense, claim.rejected_by)):
        _check_applies(place, "attack", choice.label, choice.applies_to(claim.dataset, defense), claim)
    if claim.rule.ladder:
        if claim.eps is not None:
            raise InputError(f"{place}.eps: {claim.figure!r} covers every ε of the attack; leave it out")
        if claim.rule.kind != "number" and choice.ladder:
            raise InputError(
                f"{place}.figure: {claim.figure!r} needs an attack with ladder = false, which attacks anew at every ε"
            )
        return claim.model_copy(update={"norm": norm})
    return claim.model_copy(update={"norm": norm, "eps": _size(choice, claim, place)})


def _size(choice: AttackChoice, claim: Claim, place: str) -> float:
    """Return the ε that the claim names, or the attack's only one; raises InputError."""
    known = ", ".join(eps_text(eps) for eps in choice.eps)
    if claim.eps is None and len(choice.eps) > 1:
        raise InputError(f"{place}.eps: missing; give one of the sizes of {claim.attack!r}: {known}")
    if claim.eps is not None and claim.eps not in choice.eps:
        raise InputError(f"{place}.eps: {claim.attack!r} is not run at {eps_text(claim.eps)}; its sizes are {known}")
    return choice.eps[0] if claim.eps is None else claim.eps


def _check_applies(place: str, key: str, name: str, applies: bool, claim: Claim) -> None:
    if not applies:
        raise InputError(
            f"{place}.{key}: {name!r} does not run on {claim.dataset!r} with {claim.defense!r} in this matrix"
        )


PUBLISHED: dict[str, tuple[str, Callable[[object], bool]]] = {
    "share": ("a share in [0, 1] or [count, of]", lambda v: isinstance(v, tuple) or (isinstance(v, float) and v <= 1)),
    "trend": ("true or false", lambda v: isinstance(v, bool)),
    "number": ("a number ≥ 0", lambda v: isinstance(v, float)),
}
"""Allowed published values for each kind of a figure's rule: in words, and as a test."""


def claims_of(run: JsonObject, folder: Path) -> tuple[Claim, ...]:
    """Return the claims of a run; raises InputError for a damaged run.json.

    run: content of its run.json, or {} for a run without one. folder: the run's folder, for the message.
    """
    try:
        stored = run.get("matrix", {}).get("claims", [])
        return tuple(Claim.model_validate_json(json.dumps(claim)) for claim in stored)
    except (ValueError, AttributeError) as error:
        raise InputError(f"{folder / 'run.json'}: damaged ({one_line(error)}); run again") from error
