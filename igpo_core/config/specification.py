"""What an ablation compares: a base experiment, arms that change the learning signal alone, factors crossed with them,
seeds. One YAML file each."""

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from igpo_core.config.changes import changed, differing, look_up, of_cell, put
from igpo_core.config.data import DataConfig
from igpo_core.config.experiment import ExperimentConfig
from igpo_core.config.faults import ARM, cut, faults_of_arms
from igpo_core.config.identity import code_version, fingerprint
from igpo_core.config.reasons import nearest, reasons
from igpo_core.config.reward import settled
from igpo_core.errors import ConfigError
from igpo_core.settings import Truthless

MOST_CELLS = 1000


class Until(Truthless):
    """Seeds are added until every arm's 95% interval is this narrow, or there are so many."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    width: float = Field(gt=0, description="Of the interval of the difference on test, upper end minus lower end.")
    seeds: int = Field(ge=2, le=1000, description="No more than these in all.")


class AblationSpecification(Truthless):
    """name: the study, MLflow's experiment. arms: name -> what the arm sets in `reward`, over base.reward; besides
    `optimizer: {..}` with OF_OPTIMIZER, and `replicate: n`, another draw of the same arm's rollouts (A/A).

    factors: factor -> level -> {setting: value}, settings as paths into `base` ("rollout.group_size",
    "warm_start.stages.2.steps"). Each combination of levels is a cell with a comparison of its own: all arms, the same
    start, questions and budget. Everything else is the base and equal for all arms; base.seed is replaced by each of `seeds`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)
    description: str = ""
    base: ExperimentConfig
    arms: dict[str, dict[str, Any]] = Field(min_length=1)
    baseline: str
    primary: str | None = Field(
        None,
        description="The arm whose comparison with the baseline answers the question. Empty: the only other arm where there "
        "is one, else no single one.",
    )
    factors: dict[str, dict[str, dict[str, Any]]] = Field({})
    seeds: list[int] = Field(min_length=1)
    until: Until | None = Field(None, description="Go on with more seeds until the answer is narrow enough.")
    margin: float = Field(
        0.03,
        ge=0,
        lt=1,
        description="A difference on test below this does not matter: within it arms are equal.",
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Runs at the same time. Empty: two on the CPU, and on accelerators as many as each has one, or a share, of.",
    )
    changes: dict[str, Any] = Field(
        {}, description="What the start of a sweep set over its file, by path into base, which has it already."
    )

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds repeat: {seeds}; a repeated seed is the same run, not more evidence")
        if min(seeds) < 0:
            raise ValueError(f"seeds must not be negative: {seeds}")
        return seeds

    @field_validator("factors")
    @classmethod
    def _levels(cls, factors: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
        for factor, levels in factors.items():
            odd = [cut(name) for name in (factor, *levels) if not re.fullmatch(ARM, name)]
            if odd:
                raise ValueError(
                    "name factors and levels with at most 64 letters, digits and . - _ alone, a letter, digit or _ first, not "
                    f"{', '.join(odd)}"
                )
            if any("seed" in settings for settings in levels.values()):
                raise ValueError(f"factor {factor!r} sets seed: seeds are paired, give them in `seeds`")
            if len(levels) < 2:
                raise ValueError(f"factor {factor!r} has one level: nothing is crossed; put its settings into base")
            touched = {frozenset(settings) for settings in levels.values()}
            if len(touched) > 1:
                raise ValueError(
                    f"the levels of factor {factor!r} set different things: each must set the same settings"
                )
        cells = math.prod(map(len, factors.values()))
        if cells > MOST_CELLS:
            raise ValueError(
                f"the factors make {cells} cells, each with a comparison of its own: no more than {MOST_CELLS} are made"
            )
        return factors

    @model_validator(mode="after")
    def _base_has_the_changes(self) -> "AblationSpecification":
        base = self.base.model_dump(mode="json")
        lacking = [path for path, value in self.changes.items() if _without_texts(look_up(base, path)) != value]
        if lacking:
            raise ValueError(
                f"changes: base has {', '.join(lacking)} otherwise; put settings into base, and leave changes out"
            )
        return self

    @model_validator(mode="after")
    def _arms(self) -> "AblationSpecification":
        faults = faults_of_arms(self.arms, self.baseline, self.primary)
        if not faults:
            faults = [fault for cell in self.cells for fault in self._faults_of_cell(cell)]
        if faults:
            raise ValueError("\n  ".join(dict.fromkeys(faults)))
        for cell in self.cells:
            same: dict[str, str] = {}
            for arm in self.arms:
                twin = same.setdefault(self.experiment(arm, 0, cell).model_dump_json(), arm)
                if twin != arm:
                    raise ValueError(
                        f"arms {twin!r} and {arm!r} are the same{f' in cell {cell}' if cell else ''}: for an A/A comparison "
                        "give one of them `replicate: 1`, another draw of its rollouts"
                    )
        for factor in self.factors:
            if all(factor in self.ignored_factors(arm) for arm in self.arms):
                raise ValueError(f"factor {factor!r} changes nothing in any arm: its levels set what is set already")
        return self

    def _faults_of_cell(self, cell: str) -> list[str]:
        """Why arms cannot be run in the cell, one each."""
        faults = []
        for arm in self.arms:
            try:
                self.experiment(arm, 0, cell)
            except ValueError as error:
                faults.append(str(error))
        return faults

    @property
    def answering(self) -> list[str]:
        """The arms whose comparison with the baseline answers the question: one, or every other arm where none is named."""
        return [self.primary] if self.primary else [arm for arm in self.arms if arm != self.baseline]

    @cached_property
    def cells(self) -> tuple[str, ...]:
        """The combinations of levels, as "group=8,gamma=0.9"; the one cell of a specification without factors is ""."""
        named = [[f"{factor}={level}" for level in levels] for factor, levels in self.factors.items()]
        return tuple(",".join(levels) for levels in itertools.product(*named))

    def cell_base(self, cell: str) -> ExperimentConfig:
        """The base with the settings of a cell. Raises ConfigError, listing the cells, on an unknown one."""
        if cell not in self.cells:
            raise ConfigError(f"unknown cell {cell!r}: {self.name} has {'; '.join(self.cells) or 'no factors'}")
        if not cell:
            return self.base
        content = of_cell(json.loads(self.base.model_dump_json()), self.factors, cell)
        levels = (self.factors[factor][level] for factor, level in (part.split("=", 1) for part in cell.split(",")))
        content["reward"] = _with_reward(content["reward"], [path for settings in levels for path in settings])
        try:
            return ExperimentConfig.model_validate(content)
        except ValidationError as error:
            raise ValueError(f"cell {cell!r}: {'; '.join(reasons(error, ExperimentConfig))}") from error

    def experiment(self, arm: str, seed: int, cell: str = "") -> ExperimentConfig:
        """The whole configuration of one run. Raises ConfigError, listing the arms, on an unknown one.

        What an arm ignores is not taken over from the base, so that one run serves all cells that differ in that alone.
        """
        self._known([arm])
        base, changes = self.cell_base(cell), dict(self.arms[arm])
        optimizer, replicate = changes.pop("optimizer", {}), changes.pop("replicate", 0)
        content = base.model_dump()
        content |= {
            "reward": settled({**content["reward"], **changes}, changes),
            "optimizer": {**content["optimizer"], **optimizer},
            "seed": seed,
            "replicate": replicate,
        }
        try:
            return ExperimentConfig.model_validate(content)
        except ValidationError as error:
            raise ValueError(f"arm {arm!r}: {'; '.join(reasons(error, ExperimentConfig))}") from error

    def data_settings(self) -> list[tuple[list[str], DataConfig]]:
        """Each different data settings, with the cells that have them."""
        found: list[tuple[list[str], DataConfig]] = []
        for cell in self.cells:
            data = self.cell_base(cell).data
            same = next((cells for cells, other in found if other == data), None)
            if same is None:
                found.append(([cell], data))
            else:
                same.append(cell)
        return found

    def runs(self) -> list[tuple[str, str, int]]:
        """(cell, arm, seed) of each run to be made, seed by seed. Where an arm ignores a factor, the first cell stands for
        all that differ in it alone."""
        made: dict[str, tuple[str, str, int]] = {}
        for seed in self.seeds:
            for cell in self.cells:
                for arm in self.arms:
                    made.setdefault(self.experiment(arm, seed, cell).model_dump_json(), (cell, arm, seed))
        return list(made.values())

    def ignored_factors(self, arm: str) -> list[str]:
        """Factors whose levels make no difference to the arm: its runs are made once and serve all of them."""
        found = []
        for factor, levels in self.factors.items():
            by_level: dict[str, list[str]] = {level: [] for level in levels}
            for cell in self.cells:
                level = dict(part.split("=", 1) for part in cell.split(","))[factor]
                by_level[level].append(self.experiment(arm, 0, cell).model_dump_json())
            if len({tuple(dumps) for dumps in by_level.values()}) == 1:
                found.append(factor)
        return found

    @model_validator(mode="after")
    def _runs_have_their_machines(self) -> "AblationSpecification":
        training = self.base.training
        taken = training.nodes > 1 or (training.device == "cuda" and training.processes > 1)
        if taken and (self.processes or 1) > 1:
            raise ValueError(
                f"processes={self.processes} runs at the same time would share the accelerators that each of them takes all of "
                "(training.processes, training.nodes): set processes to 1"
            )
        return self

    def select(self, arms: list[str] | None, seeds: list[int] | None) -> "AblationSpecification":
        """These arms, the baseline and the primary arm, with these seeds; None keeps what is there."""
        self._known(arms or [])
        asked = {*(arms or self.arms), self.baseline, self.primary}
        kept = {name: changes for name, changes in self.arms.items() if name in asked}
        content = self.model_dump()
        return validated({**content, "arms": kept, "seeds": seeds or self.seeds}, "the selection")

    def with_changes(
        self, changes: Mapping[str, Any], placed: Callable[[DataConfig], DataConfig] = lambda data: data
    ) -> "AblationSpecification":
        """Return this comparison with other settings in `base`, for all arms alike. Its `changes` are the single settings that
        make it another one; what is set already, or only says where a run is computed, is none of them.

        changes: path -> value, as "optimizer.learning_rate" -> 1e-5; a value may be a whole section. placed: where relative paths
        of data begin.
        Raises ConfigError where there is no such setting, where a factor sets it, or where no arm would notice.
        """
        where = f"{self.name} with {spell_changes(_without_texts(changes))}"
        twice = [f"{one} and {other}" for one, other in itertools.combinations(changes, 2) if _overlap(one, other)]
        if twice:
            raise ConfigError(f"{where}: {twice[0]} set the same: give one of them")
        base = self.base.model_dump(mode="json")
        for path, value in changes.items():
            if path.split(".")[0] in ("seed", "replicate"):
                raise ConfigError(f"{where}: runs are told apart by {path}; give seeds as `seeds`")
            try:
                put(base, path, value)
            except ValueError as error:
                raise ConfigError(f"{where}: {error}") from error
        base["reward"] = _with_reward(base["reward"], list(changes))
        chosen = validated({**self.model_dump(), "base": base, "changes": {}}, where)
        chosen = chosen.model_copy(update={"base": chosen.base.model_copy(update={"data": placed(chosen.base.data)})})
        before, after = self.base.model_dump(mode="json"), chosen.base.model_dump(mode="json")
        asked = differing(before, after)
        for path in asked:
            for factor, levels in self.factors.items():
                if any(_overlap(path, place) for level in levels.values() for place in level):
                    raise ConfigError(
                        f"{where}: factor {factor} sets {path} in every cell; change the factor in the file"
                    )
        if asked and all(
            self.experiment(arm, 0, cell) == chosen.experiment(arm, 0, cell) for cell in self.cells for arm in self.arms
        ):
            raise ConfigError(
                f"{where}: no arm would notice {', '.join(asked)}: each sets it for itself, or ignores it"
            )
        told = [_as_a_whole(path, after) for path in changed(self.base.computed(), chosen.base.computed())]
        made = {path: _without_texts(look_up(after, path)) for path in told}
        return chosen.model_copy(update={"changes": {**self.changes, **made}})

    def departures(self, chosen: "AblationSpecification") -> list[str]:
        """Return in words what a selection adds to this comparison and leaves out of it; [] for the whole of it.

        Either can be chosen after a look at the result. With fewer arms the verdict is adjusted for fewer, too.
        """
        parts = [
            ("seed", "added", [str(seed) for seed in chosen.seeds if seed not in self.seeds]),
            ("seed", "left out", [str(seed) for seed in self.seeds if seed not in chosen.seeds]),
            ("arm", "left out", [arm for arm in self.arms if arm not in chosen.arms]),
        ]
        return [
            f"{noun}{'s' if len(names) > 1 else ''} {', '.join(names)} {what}" for noun, what, names in parts if names
        ]

    def sweep(self, data_versions: Mapping[str, str]) -> str:
        """The name that runs of this study share: changes with base, factors, code and data, not with seeds, arms or
        processes. data_versions: by cell (flows.prepare_data.versions_of)."""
        base = {name: part for name, part in self.base.identity().items() if name not in ("seed", "data")}
        return f"{self.name}-{fingerprint(base, self.factors, dict(data_versions), code_version())[:6]}"

    def _known(self, arms: list[str]) -> None:
        unknown = [arm for arm in arms if arm not in self.arms]
        if unknown:
            guesses = "".join(nearest(arm, self.arms) for arm in unknown)
            raise ConfigError(f"unknown arm {', '.join(unknown)}{guesses}: {self.name} has {', '.join(self.arms)}")


def validated(content: dict[str, Any], where: str) -> AblationSpecification:
    """pydantic's errors as one message: every field with its reason."""
    try:
        return AblationSpecification.model_validate(content)
    except ValidationError as error:
        lines = reasons(error, AblationSpecification)
        arms = content.get("arms")
        if any(fault["loc"] for fault in error.errors()) and arms is not None and _is_arms(arms):
            # rules over several fields are looked at only once each field is right: its author would mend one after another
            roles = [
                name if isinstance(name, str) else None for name in (content.get("baseline"), content.get("primary"))
            ]
            lines += faults_of_arms(arms, *roles)
        raise ConfigError(
            "\n".join([f"{where} does not describe an ablation:", *(f"  {line}" for line in lines)])
        ) from error


def _is_arms(given: Any) -> bool:
    return isinstance(given, dict) and all(isinstance(arm, dict) for arm in given.values())


def spell_changes(changes: Mapping[str, Any]) -> str:
    """Return changes as "data.top_k=5, optimizer.learning_rate=1e-05", in order of path; "" of none."""
    return ", ".join(
        f"{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in sorted(changes.items())
    )


def _with_reward(reward: Any, paths: Sequence[str]) -> Any:
    """Return a reward in which some settings are others now, without those that they leave without effect. paths: of all
    settings that are others, "reward.gamma" among them."""
    if not isinstance(reward, Mapping) or "reward" in paths:
        return reward
    own = {path.split(".")[1] for path in paths if path.startswith("reward.")}
    return settled(reward, {name: value for name, value in reward.items() if name in own}) if own else reward


def _as_a_whole(path: str, base: Mapping[str, Any]) -> str:
    """Return where a setting is told: a function by its whole gain, as it has to be given."""
    is_function = path.startswith("reward.gain.") and look_up(base, "reward.gain.kind") == "function"
    return "reward.gain" if is_function else path


def _without_texts(value: Any) -> Any:
    """Settings as they are told: a function by its path, without its text."""
    if not isinstance(value, Mapping):
        return value
    hidden = {"source"} if value.get("kind") == "function" else set()
    return {name: _without_texts(item) for name, item in value.items() if name not in hidden}


def _overlap(one: str, other: str) -> bool:
    """Whether one of two paths names the other's setting or a section that it is in."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
