"""Attacks on image classifiers and on the defenses around them. Import it as `manifold_bench.attacks`."""

if __name__ == "attacks":
    raise ImportError("import manifold_bench.attacks, not attacks")
