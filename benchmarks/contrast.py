"""What a gain in log-probability pays for: the gold answer's own rise, or what every absent name gains alike.

python -m benchmarks.contrast [PRESET] [--seeds 0,1] [--names 8]
python -m benchmarks.contrast --run <run_key> [--questions 64] [--members 8]

Makes the warm start of each seed, or takes that of a run in IGPO_HOME, samples 64 questions x 8 rollouts from it, as many of
each source, and reads the belief in the gold answer and in other answers that stand nowhere in the history. One line for each
fact that a turn's search found; of questions that are not synthetic one for each turn, and one for what its search showed: a
supporting title or the gold answer's text that had not been shown yet. Minutes a seed.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common import machine
from igpo_core.checkpoints import load_weights
from igpo_core.config import ExperimentConfig
from igpo_core.config.reward import OutcomeAndGain
from igpo_core.data import to_questions
from igpo_core.data.schema import normalised
from igpo_core.environments import atlas, lookup, open_environment
from igpo_core.environments.base import Environment
from igpo_core.evaluation import of_each_source
from igpo_core.metrics import mean
from igpo_core.policies import build_policy
from igpo_core.rewards.contrast import Contrast, contrast_pool
from igpo_core.rewards.gains import LogProbDiff, ProbDiff
from igpo_core.rewards.scoring import answer_probes, reward_trajectories
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.trajectory import Episode
from igpo_core.warmstart import run_warm_start
from tasks.lab.home import home
from tasks.runs.models import with_its_model
from tasks.runs.planned import Run, open_run
from tasks.specification.presets import load_specification

QUESTIONS, MEMBERS = 64, 8


@dataclass(frozen=True)
class Found:
    """One searching turn."""

    kinds: tuple[str, ...]
    """Which fact of the chain its search found, "fact 1" and so on, or "nothing"; where no facts are known "turn 1" and so on,
    and what was shown for the first time."""
    plain: float
    """s_t - s_{t-1} of the gold answer, nats."""
    probability: float
    """p_t - p_{t-1} of the gold answer."""
    contrasted: float
    """The plain gain less the mean of the absent names, nats."""


def world(config: ExperimentConfig) -> Environment:
    """Return the synthetic environment of an experiment, made in memory."""
    if config.data.kind == "lookup":
        return lookup.LookupEnvironment(
            config.data, to_questions(lookup.generate(config.data)), config.rollout.max_turns
        )
    if config.data.kind == "atlas":
        return atlas.AtlasEnvironment(config.data, to_questions(atlas.generate(config.data)), config.rollout.max_turns)
    raise SystemExit(f"this benchmark knows the worlds lookup and atlas, not data of kind {config.data.kind}")


def warm(config: ExperimentConfig) -> tuple[Environment, Any]:
    """Return a synthetic environment and the policy of its warm start, made now."""
    environment = world(config)
    policy = build_policy(config, environment)
    run_warm_start(config, environment, policy, progress=lambda *_: None)
    return environment, policy


def started(run: Run) -> tuple[Environment, Any]:
    """Return the environment of a planned run and the policy that it starts from."""
    config = run.spec.experiment
    torch.set_num_threads(config.training.threads)
    environment = open_environment(config, run.data)
    policy = build_policy(config, environment)
    load_weights(run.start, policy.model)
    return environment, policy


def turns_of(
    config: ExperimentConfig, environment: Environment, policy: Any, names: int, questions: int, members: int
) -> Iterator[Found]:
    """Yield every searching turn of the rollouts that a policy makes."""
    reward = OutcomeAndGain(gain=LogProbDiff(contrast=names))
    contrast = Contrast(environment, contrast_pool(environment), names, config.seed, 0)
    trajectories = rollout(
        policy, environment, of_each_source(environment.tasks("train"), questions), config.rollout,
        members=members, key=(config.seed, "benchmark", 0), probes=answer_probes(policy, environment, reward, contrast),
    )  # fmt: skip
    for item in reward_trajectories(policy, environment, trajectories, reward, contrast=contrast):
        assert item.beliefs is not None and item.gains is not None
        plain, probability = LogProbDiff().gains(item.beliefs), ProbDiff().gains(item.beliefs)
        shown = _shown(environment, item.trajectory.episode)
        for turn, kinds, *gains in zip(item.trajectory.turns, shown, plain, probability, item.gains, strict=False):
            yield Found(_fact(turn.label) or kinds, *gains)


def _fact(label: str | None) -> tuple[str, ...]:
    if label is None:
        return ()
    return ("nothing" if label == "miss" else label.replace("hop_", "fact "),)


def _shown(environment: Environment, episode: Episode) -> Iterator[tuple[str, ...]]:
    """Yield of each observation its turn, whether it shows evidence or the gold answer that none before it had, and the same with
    whether the question gives the answer to choose from: names it, or asks for yes or no. Nothing is said to show no evidence of
    a question that names none."""
    evidence = environment.evidence(episode)
    shares = [0.0] * len(episode.observations) if evidence is None else evidence
    answers = [f" {normalised(answer)} " for answer in episode.question.answers]
    asked, found, known = f" {normalised(episode.question.text)} ", 0.0, False
    given = any(answer in asked or answer in (" yes ", " no ") for answer in answers)
    for number, (observation, share) in enumerate(zip(episode.observations, shares, strict=True), 1):
        text = f" {normalised(observation.text)} "
        answered = not known and any(answer in text for answer in answers)
        what = [name for name, new in (("evidence", share > found), ("answer", answered)) if new]
        shows = f"shows {' and '.join(what) or ('neither' if evidence is not None else 'no answer')}"
        shows += "" if evidence is not None else " (evidence unknown)"
        yield f"turn {number}", shows, f"{'given' if given else 'not given'}: {shows}"
        found, known = share, known or answered


def show(seed: int, turns: Iterator[Found]) -> None:
    """Print a line for each kind of turn."""
    rows: dict[str, list[Found]] = defaultdict(list)
    for found in turns:
        for kind in found.kinds:
            rows[kind].append(found)
    for name, of_kind in sorted(rows.items()):
        plain, contrasted = mean([turn.plain for turn in of_kind]), mean([turn.contrasted for turn in of_kind])
        probability = [turn.probability for turn in of_kind]
        up = mean([float(gain > 0) for gain in probability])
        size = math.sqrt(mean([gain**2 for gain in probability]))
        print(
            f"{seed:4d}  {name:30s}  {len(of_kind):5d}  {plain:+16.3f}  {plain - contrasted:+15.3f}  {contrasted:+8.3f}  "
            f"{mean(probability):+14.4f}  {size:16.4f}  {up:5.2f}",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="lookup")
    parser.add_argument("--run", help="key of a planned run, whose data and start are taken")
    parser.add_argument("--seeds", default="200,201")
    parser.add_argument("--names", type=int, default=8)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--members", type=int, default=MEMBERS)
    given = parser.parse_args(arguments)
    sizes = (given.names, given.questions, given.members)
    print(
        f"{given.run or given.preset}, {given.questions} x {given.members} rollouts from each warm start, {given.names} other "
        f"answers; {machine()}"
    )
    print("of nats: gain, of absent names, contrast; of the probability: its mean, root mean square, share above 0")
    print(
        "seed  a search that finds             turns  gain of the gold  of absent names  contrast  in probability  root mean "
        "square  above"
    )
    if given.run:
        run = with_its_model(open_run(home(), given.run), print)
        config = run.spec.experiment
        show(config.seed, turns_of(config, *started(run), *sizes))
        return
    specification = load_specification(given.preset)
    for seed in map(int, given.seeds.split(",")):
        config = specification.experiment(specification.baseline, seed)
        show(seed, turns_of(config, *warm(config), *sizes))


if __name__ == "__main__":
    main()
