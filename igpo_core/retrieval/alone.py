"""bm25s without JAX: the package, for whoever here needs it.

bm25s imports JAX where JAX is installed, and runs a first operation on it, with which JAX takes three quarters of a GPU's memory
for itself: a run beside it dies of memory. Nothing here uses bm25s's JAX back end (indexes name numpy, and the best passages are
chosen in igpo_core/retrieval/bm25.py), so JAX is absent to bm25s while it is imported, and to nobody else.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["bm25s"]


@contextmanager
def _absent(package: str) -> Iterator[None]:
    """Within the block importing the package raises ImportError; what was imported of it before is there again afterwards."""
    modules: dict[str, object] = sys.modules  # type: ignore[assignment]  # None stands for a module that is not to be found
    there = {name: modules.pop(name) for name in list(modules) if name.split(".")[0] == package}
    modules[package] = None
    try:
        yield
    finally:
        del modules[package]
        modules |= there


with _absent("jax"):
    import bm25s
    import bm25s.stopwords
