"""Attacks on image classifiers and on the defenses around them. Import it as `manifold_bench.attacks`."""

if __name__ == "attacks":
    raise ImportError("`attacks` is not importable by itself; write `import manifold_bench.attacks`")
