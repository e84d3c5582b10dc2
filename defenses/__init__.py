"""Defenses against adversarial examples, and their trained weights. Import it as `manifold_bench.defenses`."""

if __name__ == "defenses":
    raise ImportError("import manifold_bench.defenses, not defenses")
