"""What every part of an experiment's settings is made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Source = Literal["hotpotqa", "2wikimultihopqa", "musique", "nq", "triviaqa", "popqa", "bamboogle", "custom"]
Decoding = Literal["sampled", "greedy"]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Frozen, and closed: a key that is not declared raises. A number is finite: YAML has .inf and .nan."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
