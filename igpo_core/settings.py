"""What every part of an experiment's settings is made of."""

from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

Source = Literal["hotpotqa", "2wikimultihopqa", "musique", "nq", "triviaqa", "popqa", "bamboogle", "custom"]
Decoding = Literal["sampled", "greedy"]
Share = Annotated[float, Field(ge=0, le=1)]


# of a field that says where or how a run is computed, and not what: another value makes no other run
WHERE: dict[str, Any] = {"where": True}
# of a field that came when there were runs: left out, it is no part of what a run is, so that these stay what they are
LATER: dict[str, Any] = {"later": True}


class Truthless(BaseModel):
    """No truth value is taken for a number: pydantic would read `yes` as 1."""

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name in _numbers_of(cls) & given.keys():
            value = given[name]
            inner = value if isinstance(value, list | tuple) else [value]
            if (
                isinstance(value, dict) and get_origin(cls.model_fields[name].annotation) is dict
            ):  # and no model of its own
                inner = list(value.values())
            if any(isinstance(item, bool) for item in inner):
                raise ValueError(
                    f"{name} is {value!r}, a truth value (YAML's yes, no, on and off too), and takes a number"
                )
        return given


@cache
def _numbers_of(model: type[BaseModel]) -> frozenset[str]:
    """The fields that take numbers and no truth values."""
    parts = {name: frozenset(_parts(field.annotation)) for name, field in model.model_fields.items()}
    return frozenset(
        name
        for name, found in parts.items()
        if found & {int, float} and not any(part in (bool, Any) or isinstance(part, bool) for part in found)
    )


def _parts(annotation: Any) -> list[Any]:
    """An annotation's types and values, at any depth."""
    inner = get_args(annotation)
    if not inner:
        return [annotation] if getattr(annotation, "__hash__", None) else []
    return [part for one in inner for part in _parts(one)]


class Settings(Truthless):
    """Frozen, and closed: a key that is not declared raises. A number is finite: YAML has .inf and .nan."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """Return these settings as JSON values, without those that only say where a run is computed (WHERE), and those that came
        later (LATER) and have their default."""
        return _identity(self, self.model_dump(mode="json"), later=False)

    def computed(self) -> dict[str, Any]:
        """Return what identity() does, and the settings that came later also where they have their default: what is compared with
        other settings has every setting in both."""
        return _identity(self, self.model_dump(mode="json"), later=True)


def _identity(settings: Settings, content: dict[str, Any], later: bool) -> dict[str, Any]:
    """later: whether settings that came later and have their default are kept."""
    kept = {}
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        value = getattr(settings, name)
        if not extra.get("where") and (later or not extra.get("later") or value != field.default):
            kept[name] = _identity(value, content[name], later) if isinstance(value, Settings) else content[name]
    return kept
