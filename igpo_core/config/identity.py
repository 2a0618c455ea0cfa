"""What makes two runs the same run: settings, code, and the packages that compute."""

import ast
import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

# Another version of one of these may give other bits. Those that are extras count as absent where they are.
COMPUTING = (
    "torch", "transformers", "tokenizers", "accelerate", "numpy", "peft",
    "bm25s", "PyStemmer", "sentence-transformers", "faiss-cpu",
)  # fmt: skip


def fingerprint(*parts: Any) -> str:
    """Twelve hex digits that change when any part does. Parts are JSON values or settings."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def code_on_disk(root: Path = Path(__file__).parents[1]) -> str:
    """Return a hash of igpo_core's source files as they are now, and of the versions of what it computes with.

    Comments, docstrings and the layout of the source are not in it: they change no number.
    """
    digest = hashlib.sha256()
    for package in COMPUTING:
        digest.update(f"{package} {_version(package)}\0".encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0{_meaning(path.read_text(encoding='utf-8'))}\0".encode())
    return digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _meaning(source: str) -> str:
    """The syntax tree of a source file, without docstrings and places in the file."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    """A docstring, of a module, class or function, or of the attribute above it: an expression that does nothing."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


_IMPORTED = code_on_disk()


def code_version() -> str:
    """code_on_disk when this process imported igpo_core: what computes a result is part of its identity."""
    return _IMPORTED
