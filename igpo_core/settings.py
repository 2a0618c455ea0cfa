"""What every part of an experiment's settings is made of."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Source = Literal["hotpotqa", "2wikimultihopqa", "musique", "nq", "triviaqa", "popqa", "bamboogle", "custom"]
Decoding = Literal["sampled", "greedy"]
Share = Annotated[float, Field(ge=0, le=1)]


# of a field that says where or how a run is computed, and not what: another value makes no other run
WHERE: dict[str, Any] = {"where": True}


class Settings(BaseModel):
    """Frozen, and closed: a key that is not declared raises. A number is finite: YAML has .inf and .nan."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """Return these settings as JSON values, without those that only say where a run is computed (WHERE)."""
        return _without_where(self, self.model_dump(mode="json"))


def _without_where(settings: Settings, content: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra
        if not (isinstance(extra, dict) and extra.get("where")):
            value = getattr(settings, name)
            kept[name] = _without_where(value, content[name]) if isinstance(value, Settings) else content[name]
    return kept
