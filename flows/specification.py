"""What an ablation compares: one base experiment, arms that change the reward alone, seeds. One YAML file each."""

import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from igpo_core.config import DataConfig, ExperimentConfig, QuestionFiles, RewardConfig, code_version, fingerprint
from igpo_core.errors import ConfigError
from tasks.home import PROJECT

PRESETS = PROJECT / "deployments" / "presets"
IGNORED_BY_OUTCOME_ONLY = ("gain", "normalization", "gamma", "aliases")


class AblationSpecification(BaseModel):
    """name: the study, MLflow's experiment. arms: name -> what the arm sets in `reward`, over base.reward.

    Everything else is the base and equal for all arms; base.seed is replaced by each of `seeds`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str = ""
    base: ExperimentConfig
    arms: dict[str, dict[str, Any]] = Field(min_length=1)
    baseline: str
    seeds: list[int] = Field(min_length=1)
    margin: float = Field(
        0.03, ge=0, lt=1, description="A difference in test F1 below this does not matter: within it arms are equal."
    )
    processes: int = Field(2, ge=1, le=64, description="Runs at the same time.")

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds repeat: {seeds}; a repeated seed is the same run, not more evidence")
        if min(seeds) < 0:
            raise ValueError(f"seeds must not be negative: {seeds}")
        return seeds

    @model_validator(mode="after")
    def _arms(self) -> "AblationSpecification":
        if self.baseline not in self.arms:
            raise ValueError(f"baseline {self.baseline!r} is no arm; arms are {', '.join(self.arms)}")
        known = RewardConfig.model_fields
        for arm, changes in self.arms.items():
            foreign = sorted(set(changes) - set(known))
            if foreign:
                raise ValueError(
                    f"arm {arm!r} sets {', '.join(foreign)}: an arm changes the reward alone ({', '.join(known)}); anything "
                    "else would confound the comparison and belongs into `base`, for all arms"
                )
            self._reward(arm)
        return self

    def _reward(self, arm: str) -> RewardConfig:
        """base.reward with the arm's changes; outcome_only takes over nothing from the base that it would ignore."""
        changes = self.arms[arm]
        inherited = self.base.reward.model_dump(exclude_unset=True)
        if changes.get("reward", inherited.get("reward")) == "outcome_only":
            inherited = {name: value for name, value in inherited.items() if name not in IGNORED_BY_OUTCOME_ONLY}
        try:
            return RewardConfig.model_validate({**inherited, **changes})
        except ValidationError as error:
            raise ValueError(f"arm {arm!r}: {'; '.join(reasons(error))}") from error

    def experiment(self, arm: str, seed: int) -> ExperimentConfig:
        """The whole configuration of one run. Raises ConfigError, listing the arms, on an unknown one."""
        self._known([arm])
        return self.base.model_copy(update={"reward": self._reward(arm), "seed": seed})

    def select(self, arms: list[str] | None, seeds: list[int] | None) -> "AblationSpecification":
        """These arms and the baseline, with these seeds; None keeps what is there."""
        self._known(arms or [])
        kept = {name: changes for name, changes in self.arms.items() if not arms or name in {*arms, self.baseline}}
        return validated({**self.model_dump(), "arms": kept, "seeds": seeds or self.seeds}, "the selection")

    def sweep(self, data_version: str) -> str:
        """The name that runs of this study share: changes with base, code and data, not with seeds, arms or processes."""
        base = self.base.model_dump(mode="json", exclude={"seed": True, "data": True})
        return f"{self.name}-{fingerprint(base, data_version, code_version())[:6]}"

    def _known(self, arms: list[str]) -> None:
        unknown = [arm for arm in arms if arm not in self.arms]
        if unknown:
            raise ConfigError(f"unknown arm {', '.join(unknown)}: {self.name} has {', '.join(self.arms)}")


class _EachKeyOnce(yaml.SafeLoader):
    """YAML in which a repeated key is an error: the first of two values would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(repeated)} given twice", node.start_mark)
        return dict(super().construct_mapping(node, deep=deep))


def load_specification(name: str) -> AblationSpecification:
    """A preset by name, or a YAML file by path. Raises ConfigError naming file, field and reason."""
    path = PRESETS / f"{name}.yaml" if "/" not in name and not name.endswith((".yaml", ".yml")) else Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise ConfigError(f"no specification {name!r}: presets are {shipped}; or give the path of a YAML file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings: it needs name, base, arms, baseline and seeds")
    specification = validated(content, str(path))
    base = specification.base.model_copy(update={"data": from_project(specification.base.data)})
    return specification.model_copy(update={"base": base})


def from_project(data: DataConfig) -> DataConfig:
    """Relative paths start at the project folder, wherever the flow runs."""
    if not isinstance(data, QuestionFiles):
        return data
    found = {
        "questions": tuple(
            file.model_copy(update={"path": (PROJECT / file.path).resolve()}) for file in data.questions
        ),
        "corpus": tuple((PROJECT / path).resolve() for path in data.corpus),
        "evaluation": (PROJECT / data.evaluation).resolve() if data.evaluation else None,
    }
    return data.model_copy(update=found)


def validated(content: dict[str, Any], where: str) -> AblationSpecification:
    """pydantic's errors as one message: every field with its reason."""
    try:
        return AblationSpecification.model_validate(content)
    except ValidationError as error:
        lines = [f"  {reason}" for reason in reasons(error)]
        raise ConfigError("\n".join([f"{where} does not describe an ablation:", *lines])) from error


def reasons(error: ValidationError) -> list[str]:
    """Each fault as "field: what is wrong"; a rule over several fields names them itself."""
    return [_reason(fault["loc"], fault["type"], fault["msg"], fault["input"]) for fault in error.errors()]


def _reason(place: tuple[int | str, ...], kind: str, message: str, given: Any) -> str:
    field = ".".join(map(str, place))
    if kind == "extra_forbidden":
        message = "there is no such setting: remove it or correct its name"
    elif not kind.startswith("value_error") and isinstance(given, str | int | float):
        message += f", got {given!r}"
    message = message.removeprefix("Value error, ")
    return f"{field}: {message}" if field else message


def main(arguments: list[str]) -> int:
    """python -m flows.specification PRESET: says what is wrong with a preset, before any server is started for it."""
    try:
        load_specification(arguments[0])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
