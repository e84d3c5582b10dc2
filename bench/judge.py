"""The command `manifold-bench judge IMAGES --defense NAME`: judge adversarial images that were made elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from manifold_bench.bench.arguments import Parser, natural, positive, size
from manifold_bench.bench.errors import report_errors
from manifold_bench.bench.running.environment import ensure_home
from manifold_bench.bench.text import norm_of


def parser() -> Parser:
    """Return the parser of this command's arguments."""
    p = Parser(
        prog="manifold-bench judge",
        description="Judge adversarial images that were made elsewhere, as the outputs of an attack are judged. An "
        ".npz file of `run --export` holds the data set, norm and ε, so that they need not be given.",
        epilog="Exit codes: 0 done, 1 a defense failed, 2 bad input.",
    )
    files = "an .npz file of `run --export`; a .pt or .pth file with tensors (RobustBench, AutoAttack); or a folder of "
    files += "pictures, each named by the index of its test image (AutoAdvExBench: 0000.png)"
    p.add_argument("images", type=Path, metavar="IMAGES", help=files)
    defenses = "defense that classifies the images (repeatable)"
    p.add_argument("--defense", action="append", required=True, metavar="NAME", help=defenses)
    p.add_argument("--dataset", metavar="NAME", help="data set whose test images were perturbed")
    p.add_argument(
        "--norm", type=norm_of, choices=("linf", "l2", "l1", "l0", "unrestricted"), help="norm of the perturbations"
    )
    p.add_argument("--eps", type=size, metavar="SIZE", help="largest allowed size of a perturbation: 0.3 or 8/255")
    p.add_argument("--label", metavar="TEXT", help="name of the images in tables (default: made from the file)")
    p.add_argument("--n", type=positive, metavar="N", help="judge only the first N images of the file")
    p.add_argument("--out", metavar="DIR", help="output folder (default: results/judged-IMAGES)")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of data files (default: $MANIFOLD_BENCH_DATA)")
    workers = "number of parallel jobs (default: the number of cores; 0: all in this process)"
    p.add_argument("--workers", type=natural, metavar="N", help=workers)
    p.add_argument("--device", default="cpu", help="device to compute on: cpu (default), cuda, cuda:1, …")
    p.add_argument("--quiet", action="store_true", help="show only failures and the last lines")
    p.set_defaults(engine="local")
    return p


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 if a defense failed."""
    given = parser().parse_args(arguments)
    ensure_home()
    given.out = given.out or str(Path("results") / f"judged-{given.images.stem}")
    # late: `--help` waits for neither torch nor pandas
    from manifold_bench.bench.evaluation.judging import judge

    return judge(given)


if __name__ == "__main__":
    sys.exit(main())
