"""Folders and files that are whole or absent: filled beside, then given their name in one rename; and YAML as people write it."""

import hashlib
import json
import os
import platform
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from igpo_core.errors import ConfigError


def fill_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill(path)` write into a new folder, and give it the name `folder` only when all of it is on disk.

    A failure, a full disk or a kill leaves nothing under that name. A folder that has the name already is replaced.
    Raises what `fill` raises, and OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    shutil.rmtree(beside, ignore_errors=True)  # of a killed process that had this number
    try:
        beside.mkdir()
        fill(beside)
        for path in [beside, *beside.rglob("*")]:
            _sync(path)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def own_folder() -> Path:
    """Return a folder of this user's on this machine, whose name it bears, for machines may share a home folder. In the temporary
    folder anybody could make it first. Raises ConfigError where others may write there."""
    folder = Path.home() / ".cache" / "igpo-lab" / platform.node()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"{folder} belongs to another user, or others may write there: whoever does can run code as you, and keep your runs "
            "from starting. chown and chmod 700 it, or set HOME to a folder of your own"
        )
    return folder


def whole_files(folder: Path) -> list[Path]:
    """Return what lies in a folder, by name, without what is being written beside it at this moment (`write_text`)."""
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below a folder, in order of path."""
    return {
        path.relative_to(folder).as_posix(): file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_json(path: Path, content: Any) -> None:
    """Write a file that is whole or the one before, even after a kill or a power cut."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a file that is whole or the one before, even after a kill or a power cut. mode: before the umask, from the first
    byte on."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    beside.unlink(missing_ok=True)  # of a killed process that had this number
    with os.fdopen(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


# What PyYAML raises of a value that looks like a number or a date and is none (0x_, 2026-13-45, !!int x), besides its own.
_NO_VALUE = (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError)


def read_yaml(path: Path) -> Any:
    """The one document in a file. Raises ConfigError: cannot be read, no UTF-8, no YAML, a key twice, nested too deeply."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(
            f"{path} is nested too deeply for any setting: remove the brackets that are too many"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8: {error}") from error
    except _NO_VALUE as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error


class _EachKeyOnce(yaml.SafeLoader):
    """YAML in which a repeated key is an error: the first of two values would be lost without a word. 1:30 is text, as in YAML
    1.2, and not 90."""

    def plain_number(self, node: yaml.ScalarNode) -> Any:
        if ":" in node.value:
            return self.construct_scalar(node)
        whole = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(repeated)} given twice", node.start_mark)
        return dict(super().construct_mapping(node, deep=deep))


for _kind in ("int", "float"):
    _EachKeyOnce.add_constructor(f"tag:yaml.org,2002:{_kind}", _EachKeyOnce.plain_number)
