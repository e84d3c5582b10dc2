"""Training a defense: `manifold-bench train --dataset mnist --defense gmvae --set alpha=50 --data DIR`.

Seeded, and resumable: the same command goes on after the last complete epoch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from manifold_bench.bench.arguments import checked_device, data_folder, natural
from manifold_bench.bench.errors import InputError, report_errors
from manifold_bench.bench.running.environment import choose_kernels
from manifold_bench.bench.running.training import asked, parameters, teller, train, training_command


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="manifold-bench train", description="Train a defense from scratch.")
    p.add_argument("--dataset", required=True, metavar="NAME", help="data set to train on")
    p.add_argument("--defense", required=True, metavar="NAME", help="defense, or package.module:Name")
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="parameters",
        help="a parameter of the defense, as in a matrix file (repeatable)",
    )  # fmt: skip
    p.add_argument(
        "--part", default="", metavar="NAME",
        help="train only that part of the defense, which others may share: generator, classifier, …",
    )  # fmt: skip
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of the data files (default: MANIFOLD_BENCH_DATA)")
    p.add_argument("--seed", type=natural, default=0, metavar="N")
    p.add_argument("--budget", type=float, default=1.0, help="share of the full training, in (0, 1] (default 1)")
    p.add_argument("--device", default="cpu")
    p.add_argument("--out", type=Path, metavar="FILE", help="where to write the .safetensors (default: the cache)")
    p.add_argument("--quiet", action="store_true", help="show nothing but where the weights are")
    return p


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    choose_kernels()
    from rich.console import Console

    from manifold_bench.bench.planning.reading import defense_by_name
    from manifold_bench.bench.planning.refs import TRAINING_SEED, DatasetRef, cache_file, defense_ref
    from manifold_bench.bench.planning.registry import one_line
    from manifold_bench.bench.records.log import Log
    from manifold_bench.bench.records.provenance import provenance
    from manifold_bench.bench.running.board import Board, Work

    if not 0 < options.budget <= 1:
        raise InputError(f"--budget: {options.budget} is not allowed; give a share in (0, 1]")
    if options.out and options.out.suffix != ".safetensors":
        raise InputError(f"--out: {options.out} does not end in .safetensors")
    choice = defense_by_name(options.defense, parameters(options.parameters), "--set")
    dataset = DatasetRef(options.dataset, data_folder(options.data))
    data = dataset.load()
    ref = defense_ref(choice, data)
    own = asked(ref, options.part)
    path = options.out or cache_file(own, data, options.seed, options.budget)
    device = checked_device(options.device)
    trainings = {part: before for part, before in own.untrained.items() if part} | {"": own}
    titles = {part: f"{own.part(part).told}{ref.label} on {dataset.name}" for part in trainings}
    targets = {part: before.weights if part else path for part, before in trainings.items()}
    log = Log(path.with_suffix(".log.jsonl"))
    log.event("run started", **provenance())
    with Board(Console(), 1, log, options.quiet) as board:
        board.expect({str(targets[part]): Work("training", title) for part, title in titles.items()})
        for part, title in titles.items():
            full = ".".join(filter(None, (options.part, part)))
            seed, budget = (TRAINING_SEED, 1.0) if part else (options.seed, options.budget)
            target = targets[part]
            assert target is not None
            try:
                train(
                    own.part(part), dataset, target, seed=seed, budget=budget, device=device,
                    command=training_command(ref, data.name, seed, budget, full), tell=teller(log, target, title),
                )  # fmt: skip
            except Exception as error:
                board.done(str(target), one_line(error))
                raise
            board.done(str(target), None)
    log.event("run finished", jobs=len(trainings), failed=0, skipped=0, memory=board.peak)
    print(f"weights: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
