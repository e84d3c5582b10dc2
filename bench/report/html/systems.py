"""What report.html says of the attacks and defenses that it shows: a sentence and the paper of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from manifold_bench.bench.planning.catalogue import describe, papers
from manifold_bench.defenses.identity import JsonObject, Kind, registered

DISTRIBUTION = "manifold-bench"


@dataclass(frozen=True)
class About:
    """A registered attack or defense. summary: a sentence. paper: authors, year and title; url: of the paper, or ""."""

    kind: str
    name: str
    summary: str
    paper: str
    url: str


def known_systems(identities: Mapping[str, JsonObject]) -> dict[tuple[str, str], About]:
    """Return ("attack" or "defense", name) → what is known of it, for the systems of this project in these identities.

    Only classes that this project registers are looked up, in their source code; nothing that records name is imported.
    """
    kinds: dict[str, Kind] = {"defense": "defenses", "attack": "attacks"}
    found = {}
    for kind, group in kinds.items():
        points = registered(group)
        for name in sorted({str(identity[kind]["name"]) for identity in identities.values()}):
            point = points.get(name.partition(":")[0])  # an adapter's name goes on with the class that it runs
            if point is None or point.dist is None or point.dist.name != DISTRIBUTION:
                continue
            one = describe(point)
            paper = papers().get(one.paper)
            cited, url = (f"{paper}, {paper.title}", paper.url) if paper else (one.paper, "")
            found[kind, name] = About(kind, name, one.summary, cited, url)
    return found
