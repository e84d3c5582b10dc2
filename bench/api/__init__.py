"""The Python interface: what `import manifold_bench` gives."""
