"""What was measured of a model: kept for each model, data set, decoding and sampling seed, so that an evaluation goes on.

`<home>/evaluations/<key>.json` holds the metrics and one record a question. The key is a hash of the weights, the data version,
the questions asked, the settings of rollouts, the code and the sampling seed.
"""

import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpo_core.config import ContinuousEngine, ExperimentConfig, PretrainedPolicy, code_version, fingerprint
from igpo_core.errors import ConfigError
from igpo_core.folders import write_text
from igpo_core.settings import Decoding
from tasks.runs.candidates import Candidate, at_its_commit
from tasks.runs.devices import borrowed_device
from tasks.runs.locks import locked
from tasks.runs.processors import processor
from tasks.runs.stored_models import require_vocabulary

if TYPE_CHECKING:
    from igpo_core.environments.base import Environment
    from igpo_core.policies import Policy
    from igpo_core.trajectory import Question

Say = Callable[[str], None]


@dataclass(frozen=True)
class DataSet:
    """Questions that models are asked."""

    name: str
    """Of the specification that it comes from."""
    version: str
    folder: Path
    """Published."""
    experiment: ExperimentConfig
    """Rollouts and policy of the evaluation, with this data."""
    split: str
    limit: int | None
    """Questions at most of each source."""
    sources: tuple[str, ...]
    """These alone; empty: all."""
    most: int | None = None
    """Questions at most in all, the first of each source alike, as a run's evaluations take them."""

    def identity(self) -> list[Any]:
        """Return what decides which questions are asked, and how."""
        experiment = self.experiment
        settings = [experiment.rollout.identity(), experiment.policy.identity(), experiment.training.threads]
        return [self.version, self.split, self.limit, sorted(self.sources), self.most, settings]


@dataclass(frozen=True)
class Unit:
    """One measurement."""

    model: Candidate
    data: DataSet
    decoding: Decoding
    draw: int
    """Sampling seed."""

    @property
    def title(self) -> str:
        """Return in words what is measured."""
        return f"{self.model.title} on {self.data.name} {self.data.split}, {self.decoding}, sampling seed {self.draw}"

    @property
    def key(self) -> str:
        """Return twelve hex digits that change with whatever makes another measurement of it."""
        draw = self.draw if self.decoding == "sampled" else None  # greedy decoding draws nothing
        return fingerprint(self.model.weights, self.data.identity(), self.decoding, draw, code_version())


@dataclass(frozen=True)
class Measured:
    """What a model did on a data set with one sampling seed."""

    metrics: dict[str, float]
    """"all/turns", "<source>/f1", "<source>/hops_3/f1", and so on."""
    records: list[dict[str, Any]]
    """One row a question, with its scores by key."""
    processor: str


def units_of(models: Sequence[Candidate], sets: Sequence[DataSet], draws: Sequence[int]) -> list[Unit]:
    """Return every measurement, model by model. Greedy decoding draws nothing: it is measured once."""
    return [
        Unit(model, data, decoding, draw)
        for model in models
        for data in sets
        for decoding in data.experiment.evaluation.decoding
        for draw in (draws if decoding == "sampled" else draws[:1])
    ]


def file_of(unit: Unit, home: Path) -> Path:
    """Return where a measurement is kept."""
    return home / "evaluations" / f"{unit.key}.json"


def results_of(units: Sequence[Unit], home: Path) -> list[tuple[Unit, Measured]]:
    """Return what was measured, of units that all are there."""
    return [(unit, Measured(**json.loads(file_of(unit, home).read_text())["measured"])) for unit in units]


def missing(units: Sequence[Unit], home: Path) -> list[Unit]:
    """Return those that were not measured. Equal weights are measured once, whatever they are called. What was measured is in use
    from now on: pruning goes by age."""
    absent = {unit.key: unit for unit in units if not file_of(unit, home).is_file()}
    for unit in units:
        if unit.key not in absent:
            os.utime(file_of(unit, home))
    return list(absent.values())


def measure(units: Sequence[Unit], environments: "Environments", home: Path, say: Say) -> None:
    """Measure what is not there of one model. Its weights are loaded once. Each measurement is kept as soon as it is there.

    Raises IgpoError where the model cannot be loaded, or no question of a data set fits it.
    """
    import torch

    left = missing(units, home)
    if not left:
        return
    experiment = left[0].data.experiment
    torch.set_num_threads(experiment.training.threads)
    with borrowed_device(experiment, say) as place:
        policy = _load(left[0], environments)
        policy.model.to(place)
        numbers = itertools.count(1)
        for data, own in itertools.groupby(left, key=lambda unit: unit.data):
            ask = _Asking(policy, data, environments, left[0].model.title)
            for unit in own:
                with locked(home, f"evaluation-{unit.key}", say):
                    if not file_of(unit, home).is_file():  # else another process was first
                        _keep(unit, _measure(unit, ask, processor(place)), home)
                say(f"{unit.title}: {next(numbers)} of {len(left)}")
            del ask  # its engine's cache and casts go before the next one's come
        policy.model.to("cpu")


def require_engine(models: Sequence[Candidate], experiment: ExperimentConfig) -> None:
    """Raise ConfigError with the model's name where the engine that samples in this process cannot run one of them. No weights
    are read: an evaluation is refused as a whole, before its first model is measured.

    experiment: of rollouts, policy and processor.
    """
    if not isinstance(experiment.rollout.engine, ContinuousEngine):
        return
    from igpo_core.rollout.continuous_engine import require_half
    from tasks.runs.described import require_continuous

    device = experiment.training.device
    for model in models:
        policy = at_its_commit(model, experiment).policy
        try:
            if isinstance(policy, PretrainedPolicy):
                require_continuous(model.place or policy.source, policy, device)
            elif model.place:
                require_continuous(model.place, PretrainedPolicy(name=model.place), device)
            else:  # made here, of a type that the engine knows
                require_half(device, half=False)
        except ConfigError as error:
            remedy = json.dumps({"rollout.engine.kind": "transformers"})
            raise ConfigError(f"{model.title}: {error}. For this evaluation: --param 'set={remedy}'") from error


class Environments:
    """The environments of data sets, each opened once: an index may be large."""

    def __init__(self, own: DataSet) -> None:
        """own: what the specification's policy is made for."""
        self.own = own
        self._opened: dict[str, Environment] = {}

    def of(self, data: DataSet) -> "Environment":
        """Return the environment over a data set."""
        from igpo_core.environments import open_environment

        if data.version not in self._opened:
            self._opened[data.version] = open_environment(data.experiment, data.folder)
        return self._opened[data.version]

    def questions(self, data: DataSet) -> "list[Question]":
        """Return the questions that are asked: the first of each source, in table order. Raises ConfigError where none are."""
        from igpo_core.evaluation import of_each_source

        every = of_each_source(self.of(data).tasks(data.split), data.most)
        known = sorted({question.source for question in every})
        taken: dict[str, int] = {}
        found = []
        for question in every:
            source = question.source
            if data.sources and source not in data.sources:
                continue
            taken[source] = taken.get(source, 0) + 1
            if data.limit is None or taken[source] <= data.limit:
                found.append(question)
        if not found:
            raise ConfigError(
                f"data {data.name} has no {data.split} question of {', '.join(data.sources)}: its sources are {', '.join(known)}"
            )
        return found

    def trained_on(self) -> frozenset[str]:
        """Return the sources of the train split of the specification's own data."""
        return frozenset(question.source for question in self.of(self.own).tasks("train"))


def _load(unit: Unit, environments: Environments) -> "Policy":
    from igpo_core.policies import build_policy, load_policy

    if unit.model.place:
        return load_policy(unit.model.place, at_its_commit(unit.model, unit.data.experiment))
    own = environments.own
    return build_policy(at_its_commit(unit.model, own.experiment), environments.of(own))


class _Asking:
    """A model that is asked the questions of a data set, with one engine for all its decodings and sampling seeds."""

    def __init__(self, policy: "Policy", data: DataSet, environments: Environments, title: str) -> None:
        """title: the model's."""
        from igpo_core.policies import protocol_for
        from igpo_core.sampler import own_engine

        self.environment, self.questions = environments.of(data), environments.questions(data)
        # data sets may have other tools and another system prompt than the one that the model was loaded with
        protocol = protocol_for(policy.protocol.tokenizer, data.experiment.data.interface)
        self.policy = replace(policy, protocol=protocol)
        require_vocabulary(self.policy, self.environment, title)
        self.engine = own_engine(self.policy, data.experiment.rollout.engine)


def _measure(unit: Unit, ask: _Asking, on: str) -> Measured:
    from igpo_core.evaluation import evaluate_questions

    data = unit.data
    result = evaluate_questions(
        ask.policy,
        ask.environment,
        data.experiment.model_copy(update={"seed": unit.draw}),
        questions=ask.questions,
        split=data.split,
        decoding=unit.decoding,
        engine=ask.engine,
    )
    return Measured(result.metrics, result.records, on)


def _keep(unit: Unit, measured: Measured, home: Path) -> None:
    path = file_of(unit, home)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "model": unit.model.title, "place": unit.model.place, "weights": unit.model.weights, "data": unit.data.name,
        "data_version": unit.data.version, "split": unit.data.split, "decoding": unit.decoding, "sampling_seed": unit.draw,
        "code": code_version(),
    }  # fmt: skip
    write_text(path, json.dumps({**about, "measured": asdict(measured)}, ensure_ascii=False))
