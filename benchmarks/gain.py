"""What the information gain costs: a step with it against one without, and all beliefs against one forward a turn.

python -m benchmarks.gain [--what step|scoring] [--large] [--repeats N]
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import alternate, ratios, scripted, show, spread
from benchmarks.models import (
    QWEN2_HALF_BILLION,
    QWEN2_MIDDLE,
    QWEN2_TINY,
    ConstantSearch,
    Fixed,
    policy,
    questions,
    turn_script,
)
from igpo_core.config import ExperimentConfig, RolloutConfig
from igpo_core.policies import Policy
from igpo_core.protocol import AnswerProbe
from igpo_core.rewards.information_gain import answer_log_likelihoods
from igpo_core.rewards.scoring import answer_probes, reward_trajectories
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.training import Trainer
from igpo_core.trajectory import Trajectory


def step_of(config: ExperimentConfig, of: Policy, environment: Any, members: int) -> Callable[[], None]:
    """Rollout, reward and one update of all trajectories, the same ones each time it is called; members: of each question."""
    trainer = Trainer(config, environment, of)
    asked = environment.tasks("train")[: config.rollout.questions]
    probes = answer_probes(of, environment, config.reward) if config.reward.needs_gain else None

    def step() -> None:
        trajectories = rollout(
            of,
            environment,
            asked,
            config.rollout,
            members=members,
            key=(0, "bench", 0),
            probes=probes,
        )
        reward_trajectories(of, environment, trajectories, config.reward)
        # every trajectory is updated on both sides: outcome_only must not win by its dead groups
        trainer.learner.update(trajectories, [[1e-3] * len(item.turns) for item in trajectories], step=0)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def configuration(reward: str, **rollout_settings: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "data": {"kind": "files", "questions": [{"path": "none"}], "corpus": ["none"]},
            "policy": {"kind": "pretrained", "name": "random"},
            "reward": {"reward": reward},
            "rollout": rollout_settings,
            "optimizer": {"learning_rate": 1e-12, "tokens_per_batch": 8192},
        }
    )


def step_of_a_chat_model(shape: dict[str, Any], name: str, group: int, repeats: int) -> None:
    of = policy(shape)
    script = turn_script(of, 8)
    environment = Fixed(questions(1), 87)
    settings = {
        "questions": 1,
        "group_size": max(2, group),
        "max_turns": 8,
        "max_new_tokens": len(script),
        "max_tokens": 16_384,
    }
    length = 0

    def side(reward: str) -> Callable[[], None]:
        return step_of(configuration(reward, **settings), of, environment, group)

    with scripted(script):
        sample = rollout(
            of,
            environment,
            environment.asked,
            RolloutConfig(**settings),
            members=group,
            key=(0, "bench", 0),  # type: ignore[arg-type]
        )
        length = len(sample[0].token_ids)
        without, with_gain = alternate(
            {"outcome_only": side("outcome_only"), "igpo": side("outcome_and_gain")}, repeats
        )
    extra = [100 * (ratio - 1) for ratio in ratios(with_gain, without)]
    show(
        f"a step with the gain against one without, same trajectories: {name}, {group} rollouts of {length} tokens, 8 turns",
        "at most 2% more",
        [("outcome_only", without.text), ("igpo", with_gain.text), ("more", spread(extra, 1, "%"))],
        repeats,
    )


def step_of_the_laptop(repeats: int) -> None:
    """Preset lookup after its first warm-start stage, which searches in every way."""
    from igpo_core.data import to_questions
    from igpo_core.environments import lookup
    from igpo_core.environments.lookup import LookupEnvironment
    from igpo_core.policies import build_policy
    from igpo_core.warmstart import run_warm_start
    from tasks.specification.presets import load_specification

    specification = load_specification("lookup")
    base = specification.experiment("igpo", 0)
    assert base.data.kind == "lookup" and base.warm_start is not None
    environment = LookupEnvironment(base.data, to_questions(lookup.generate(base.data)), base.rollout.max_turns)
    short = base.warm_start.stages[0].model_copy(update={"steps": 60})
    taught = base.model_copy(update={"warm_start": base.warm_start.model_copy(update={"stages": (short,)})})
    of = build_policy(base, environment)
    run_warm_start(taught, environment, of, progress=lambda *_: None)
    sides = {
        arm: step_of(specification.experiment(arm, 0), of, environment, base.rollout.group_size)
        for arm in ("outcome_only", "igpo")
    }
    without, with_gain = alternate(sides, repeats)
    extra = [100 * (ratio - 1) for ratio in ratios(with_gain, without)]
    show(
        "a step with the gain against one without, same trajectories: the laptop preset, 128 rollouts",
        "at most 12% more",
        [("outcome_only", without.text), ("igpo", with_gain.text), ("more", spread(extra, 1, "%"))],
        repeats,
    )


@torch.no_grad()
def plain_forwards(of: Policy, item: Trajectory, probe: AnswerProbe) -> list[float]:
    """One forward pass over the whole history for every turn, as the authors' code does; logits of the answer alone."""
    values = []
    for cut in item.cuts:
        ids = torch.tensor([[*item.token_ids[:cut], *probe.prefix_ids, *probe.answer_ids]], device=of.model.device)
        hidden = of.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        answer = len(probe.answer_ids)
        logprobs = torch.log_softmax(of.model.get_output_embeddings()(hidden[0, -answer - 1 : -1]).float(), -1)
        values.append(float(logprobs.gather(1, ids[0, -answer:, None]).mean()))
    return values


def scoring(shape: dict[str, Any], name: str, repeats: int) -> None:
    of = policy(shape)
    script = turn_script(of, 8)
    rows = []
    for turns in (2, 4, 8, 16):
        settings = RolloutConfig(
            questions=1, group_size=2, max_turns=turns, max_new_tokens=len(script), max_tokens=16_384
        )
        asked = questions(1)
        with scripted(script):
            item = rollout(of, ConstantSearch(60), asked, settings, members=1, key=(0, "bench", 0))[0]  # type: ignore[arg-type]
        probe = of.protocol.probe(asked[0].answers[0])
        packed = answer_log_likelihoods(of.model, [item.token_ids], [item.cuts], [probe])[0]
        plain = plain_forwards(of, item, probe)
        assert max(abs(a - b) for a, b in zip(packed, plain, strict=True)) < 1e-4, "packed and plain beliefs differ"
        one, other = alternate(
            {
                "one forward a turn": lambda item=item, probe=probe: plain_forwards(of, item, probe),  # type: ignore[misc]
                "packed": lambda item=item, probe=probe: answer_log_likelihoods(  # type: ignore[misc]
                    of.model, [item.token_ids], [item.cuts], [probe]
                ),
            },
            repeats,
        )
        faster = ratios(one, other)
        rows.append(
            (
                f"T = {turns}, {len(item.token_ids)} tokens",
                f"{spread(faster, 1)} times faster (goal {(turns + 1) / 2:.1f}); a turn costs "
                f"{1000 * other.median / turns:.1f} ms packed, {1000 * one.median / turns:.1f} ms with a forward each",
            )
        )
    show(
        f"all beliefs of a finished trajectory against one forward a turn: {name}",
        "(T + 1) / 2 times faster",
        rows,
        repeats,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=["step", "scoring", "both"], default="both")
    parser.add_argument(
        "--large", action="store_true", help="steps of the Qwen2-0.5B shape alone: minutes a step without a GPU"
    )
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.large:
        step_of_a_chat_model(QWEN2_HALF_BILLION, "the Qwen2-0.5B shape", 1, chosen.repeats)
        return
    if chosen.what != "scoring":
        step_of_the_laptop(chosen.repeats)
        step_of_a_chat_model(QWEN2_TINY, "a tiny Qwen2", 8, chosen.repeats)
    if chosen.what != "step":
        scoring(QWEN2_TINY, "a tiny Qwen2, whose attention is most of its work", chosen.repeats)
        scoring(QWEN2_MIDDLE, "a Qwen2 of width 512 and 6 layers", chosen.repeats)


if __name__ == "__main__":
    main()
