"""Where what is computed once is kept for later runs."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "MANIFOLD_BENCH_CACHE"


def cache_folder(kind: str) -> Path:
    """Folder for one kind of cached files, such as "weights", in MANIFOLD_BENCH_CACHE or the user's cache folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("manifold-bench")) / kind
