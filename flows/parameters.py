"""The types of the flows' parameters: what Prefect's forms say of them, and what its server refuses before a run exists."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from igpo_core.errors import ConfigError
from igpo_core.folders import read_yaml
from tasks.specification.presets import PRESETS


def _arms(path: Path) -> list[str]:
    """Return the names of a preset's arms for the form. A broken preset has none there, and says what is wrong when it is
    loaded: it must not keep the other presets from starting."""
    try:
        content = read_yaml(path)
    except ConfigError:
        return []
    arms = content.get("arms") if isinstance(content, dict) else None
    return list(map(str, arms)) if isinstance(arms, dict) else []


ARMS: dict[str, list[str]] = {path.stem: _arms(path) for path in sorted(PRESETS.glob("*.yaml"))}
PATTERN = f"^({'|'.join(ARMS)})$|/|\\.ya?ml$"


def _listed() -> str:
    """Return every preset with its arms; presets that have the same ones stand together."""
    presets: dict[str, list[str]] = {}
    for preset, arms in ARMS.items():
        presets.setdefault(", ".join(arms), []).append(preset)
    return ". ".join(f"{', '.join(names)}: {arms}" for arms, names in presets.items())


Preset = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "pattern": PATTERN,
            "description": f"One of deployments/presets ({', '.join(ARMS)}), or the path of a specification, with its .yaml.",
        }
    ),
]
Arm = Annotated[str, WithJsonSchema({"type": "string", "description": f"An arm of the preset. {_listed()}."})]


def _or_none(schema: dict[str, Any], description: str) -> WithJsonSchema:
    """Return the schema of a parameter that may be left out. The description stands beside both, where the form looks for it."""
    return WithJsonSchema({"anyOf": [schema, {"type": "null"}], "description": description})


Arms = Annotated[
    list[str] | None,
    _or_none(
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
        f"Only these arms, the baseline and the primary arm. Empty: all of the preset. {_listed()}.",
    ),
]
Changes = Annotated[
    dict[str, Any] | None,
    _or_none(
        {"type": "object"},
        "Other settings in the preset's base, by path, for all arms alike: "
        '{"optimizer.learning_rate": 1e-5, "data.top_k": 5}. They make another sweep of the same study. docs/experiments.md '
        "lists the settings.",
    ),
]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[
    list[int],
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True}),
]
