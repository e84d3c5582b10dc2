"""manifold-bench: measures how robust image classifiers and their defenses are."""
