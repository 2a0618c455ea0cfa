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
        if path.relative_to(root).parts[0] == "build":  # what setuptools leaves where it made a wheel
            continue
        digest.update(f"{path.relative_to(root).as_posix()}\0{_meaning(path.read_text(encoding='utf-8'))}\0".encode())
    return digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _meaning(source: str) -> str:
    """The syntax tree of a source file, without docstrings and places in the file; the source itself while it is none."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # being edited: it is another code, and whoever imports it says what is wrong
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)]
    return _written(tree)


def _written(part: Any) -> str:
    """A part of a syntax tree, alike in all versions of Python: newer ones have more fields, empty where unused."""
    if isinstance(part, ast.Constant):
        return f"Constant({type(part.value).__name__} {part.value!r})"
    if isinstance(part, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(part) if value not in (None, [], ""))
        return f"{type(part).__name__}({','.join(f'{name}={_written(value)}' for name, value in fields)})"
    return f"[{','.join(map(_written, part))}]" if isinstance(part, list) else repr(part)


def _is_text(statement: ast.stmt) -> bool:
    """A docstring, of a module, class or function, or of the attribute above it: an expression that does nothing."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


_IMPORTED = code_on_disk()


def code_version() -> str:
    """code_on_disk when this process imported igpo_core: what computes a result is part of its identity."""
    return _IMPORTED
