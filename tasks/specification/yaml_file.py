"""YAML files that people write."""

from pathlib import Path
from typing import Any

import yaml

from igpo_core.errors import ConfigError

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
