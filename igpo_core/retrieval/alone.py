"""bm25s without JAX: the package, for whoever here needs it.

bm25s imports JAX where JAX is installed, and runs a first operation on it, with which JAX takes three quarters of a GPU's memory
for itself: a run beside it dies of memory. Nothing here uses bm25s's JAX back end (indexes name numpy, and the best passages are
chosen in igpo_core/retrieval/bm25.py), so JAX is absent to bm25s while it is imported, and to nobody else.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder

__all__ = ["bm25s"]


class _Absent(MetaPathFinder):
    """Finds no module of a package: importing it raises ModuleNotFoundError, as where it is not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> None:
        if fullname.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Within the block the package is absent; what was imported of it before is there again afterwards."""
    there = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == package}
    finder = _Absent(package)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.modules.update(there)


with _without("jax"):
    import bm25s
    import bm25s.stopwords
