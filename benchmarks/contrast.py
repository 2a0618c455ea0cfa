"""What a gain in log-probability pays for: the gold answer's own rise, or what every absent name gains alike.

python -m benchmarks.contrast [PRESET] [--seeds 0,1] [--names 8]

Makes the warm start of each seed, samples 64 questions x 8 rollouts from it, and reads the belief in the gold answer and
in other answers that stand nowhere in the history. One line for each fact that a turn's search found. Minutes a seed.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.common import machine
from igpo_core.config import ExperimentConfig
from igpo_core.config.reward import OutcomeAndGain
from igpo_core.data import to_questions
from igpo_core.environments import atlas, lookup
from igpo_core.environments.base import Environment
from igpo_core.metrics import mean
from igpo_core.policies import build_policy
from igpo_core.rewards.contrast import Contrast, contrast_pool
from igpo_core.rewards.gains import LogProbDiff
from igpo_core.rewards.scoring import answer_probes, reward_trajectories
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.warmstart import run_warm_start
from tasks.specification.presets import load_specification

QUESTIONS, MEMBERS = 64, 8


@dataclass(frozen=True)
class Found:
    """One searching turn."""

    label: str | None
    """Which fact of the chain its search found, "hop_1" and so on; "miss": none."""
    plain: float
    """s_t - s_{t-1} of the gold answer, nats."""
    contrasted: float
    """The same less the mean of the absent names, nats."""


def world(config: ExperimentConfig) -> Environment:
    """Return the synthetic environment of an experiment, made in memory."""
    if config.data.kind == "lookup":
        return lookup.LookupEnvironment(
            config.data, to_questions(lookup.generate(config.data)), config.rollout.max_turns
        )
    if config.data.kind == "atlas":
        return atlas.AtlasEnvironment(config.data, to_questions(atlas.generate(config.data)), config.rollout.max_turns)
    raise SystemExit(f"this benchmark knows the worlds lookup and atlas, not data of kind {config.data.kind}")


def turns_of(config: ExperimentConfig, names: int) -> Iterator[Found]:
    """Yield every searching turn of the rollouts that a warm start makes."""
    environment = world(config)
    policy = build_policy(config, environment)
    run_warm_start(config, environment, policy, progress=lambda *_: None)
    reward = OutcomeAndGain(gain=LogProbDiff(contrast=names))
    contrast = Contrast(environment, contrast_pool(environment), names, config.seed, 0)
    trajectories = rollout(
        policy, environment, environment.tasks("train")[:QUESTIONS], config.rollout,
        members=MEMBERS, key=(config.seed, "benchmark", 0), probes=answer_probes(policy, environment, reward, contrast),
    )  # fmt: skip
    for item in reward_trajectories(policy, environment, trajectories, reward, contrast=contrast):
        assert item.beliefs is not None and item.gains is not None
        plain = LogProbDiff().gains(item.beliefs)
        for turn, own, contrasted in zip(item.trajectory.turns, plain, item.gains, strict=False):
            yield Found(turn.label, own, contrasted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="lookup")
    parser.add_argument("--seeds", default="200,201")
    parser.add_argument("--names", type=int, default=8)
    given = parser.parse_args()
    specification = load_specification(given.preset)
    print(
        f"{given.preset}, {QUESTIONS} x {MEMBERS} rollouts from each warm start, {given.names} other answers; {machine()}"
    )
    print("seed  a search that finds  turns  gain of the gold  of absent names  contrast  [nats]")
    for seed in map(int, given.seeds.split(",")):
        rows: dict[str, list[Found]] = defaultdict(list)
        for found in turns_of(specification.experiment(specification.baseline, seed), given.names):
            rows["nothing" if found.label == "miss" else str(found.label).replace("hop_", "fact ")].append(found)
        for name, turns in sorted(rows.items()):
            plain, contrasted = mean([turn.plain for turn in turns]), mean([turn.contrasted for turn in turns])
            print(
                f"{seed:4d}  {name:19s}  {len(turns):5d}  {plain:+16.3f}  {plain - contrasted:+15.3f}  {contrasted:+8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
