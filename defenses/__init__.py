"""Defenses against adversarial examples, and their trained weights. Import it as `manifold_bench.defenses`."""

if __name__ == "defenses":
    raise ImportError("`defenses` is not importable by itself; write `import manifold_bench.defenses`")
