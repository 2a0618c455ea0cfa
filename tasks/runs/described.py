"""What a run's policy and its first batch would be, found out without weights and without a step."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from igpo_core.attention import require_packable
from igpo_core.config import ContinuousEngine, ExperimentConfig, NewPolicy, PretrainedPolicy
from igpo_core.environments.base import Demonstration, Environment
from igpo_core.errors import CheckpointError, ConfigError
from igpo_core.estimates import Shape
from igpo_core.hub import require_model
from igpo_core.models import UNLOADABLE, require_embeddings, require_plain_head, text_config, window, without_sdpa
from igpo_core.policies import Policy, build_policy, model_behind, protocol_for, remote_code, require_window
from igpo_core.rewards.contrast import Contrast, contrast_pool
from igpo_core.rewards.room import require_room
from igpo_core.rewards.scoring import answer_probes
from igpo_core.rollout.continuous_engine import require_half
from igpo_core.rollout.rows import prompt_fits
from igpo_core.trajectory import Episode
from igpo_core.weights import add_lora, require_no_dropout
from tasks.runs.planning import Tokens

LOOKED_AT = 16  # demonstrations


@dataclass(frozen=True)
class Lengths:
    """Tokens: of prompts, of one observation, of the longest probe, of a whole trajectory at most."""

    prompt: int
    observation: int
    probe: int
    trajectory: int


def describe(config: ExperimentConfig, environment: Environment) -> tuple[Policy, Shape]:
    """The policy's protocol and window, without its weights (model is None), and its shape. Raises ConfigError when its
    configuration or tokenizer cannot be loaded, its template cannot be continued token for token, its logits are scaled or
    capped, or what is asked of the model (adapter, gradient checkpointing, attention with masks) is not possible with it."""
    if isinstance(config.policy, NewPolicy):
        if isinstance(config.rollout.engine, ContinuousEngine):
            require_half(config.training.device, half=False)
        with torch.device("meta"):
            policy = build_policy(config, environment)
        return Policy(None, policy.protocol, policy.window), Shape.of(policy.model.config)
    return describe_pretrained(config, config.policy)


def describe_pretrained(config: ExperimentConfig, settings: PretrainedPolicy) -> tuple[Policy, Shape]:
    """`describe` of a pretrained policy, which needs no data. Raises NoNetwork where the hub has it and is out of reach."""
    name, remote = settings.source, remote_code(settings.source, settings)
    _require_safetensors(Path(name))
    revision = None if settings.is_gguf else settings.revision
    require_model(name, revision)
    try:
        shape, model = _without_weights(name, revision, remote)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, **remote)
    except (OSError, *UNLOADABLE) as error:
        raise ConfigError(
            f"policy.name={name}: its configuration or tokenizer cannot be loaded, or it cannot be trained here: "
            f"{without_sdpa(error) or error}"
        ) from error
    require_window(shape, config, name)
    if isinstance(config.rollout.engine, ContinuousEngine):
        require_packable(model)
        require_half(config.training.device, settings.half)
    model.set_output_embeddings(torch.nn.Linear(text_config(shape).hidden_size, 16, bias=False))
    require_plain_head(model)
    if config.optimizer.gradient_checkpointing:
        require_no_dropout(model)
    if settings.lora:
        with torch.device("meta"):
            add_lora(model, settings.lora, config.seed)
    protocol = protocol_for(tokenizer, config.data.interface, settings.thinking)
    require_embeddings(model, protocol)
    return Policy(None, protocol, window(shape)), Shape.of(shape)


def require_continuous(name: str, settings: PretrainedPolicy, device: str) -> None:
    """Raise ConfigError where the engine `continuous` cannot run a model that evaluates, CheckpointError where its configuration
    cannot be loaded. name: as of load_policy; its weights are not read."""
    behind, revision = model_behind(name, settings)
    require_model(behind, revision)
    try:
        _, model = _without_weights(behind, revision, remote_code(behind, settings))
    except (OSError, *UNLOADABLE) as error:
        raise CheckpointError(
            f"{behind}: its configuration cannot be loaded: {without_sdpa(error) or error}"
        ) from error
    require_packable(model)
    require_half(device, settings.half)


def _without_weights(name: str, revision: str | None, remote: dict[str, Any]) -> tuple[Any, Any]:
    """The configuration of a folder or hub name, and its model on torch's device meta. remote: of remote_code."""
    shape = AutoConfig.from_pretrained(name, revision=revision, **remote)
    # transformers takes code_revision for a class that comes with the model alone, and that this process has not loaded yet
    named = "AutoModelForCausalLM" in (getattr(shape, "auto_map", None) or {})
    known = AutoModelForCausalLM._model_mapping.get(type(shape), None)
    loaded = known is not None and not known.__module__.startswith("transformers.")
    code = remote if named and not loaded else {"trust_remote_code": False}
    with torch.device("meta"):
        return shape, AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa", **code)


def _require_safetensors(folder: Path) -> None:
    """Raise ConfigError for a folder without them; what the hub has is known when it is loaded."""
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"policy.name={folder}: no *.safetensors in this folder: convert its weights, no other is read"
        )


def first_batch(config: ExperimentConfig, environment: Environment, policy: Policy) -> Lengths:
    """Prompts, probes and one observation as tokens. Raises IgpoError where a question, a probe or a tool fails."""
    every = [q for q in environment.tasks("train") if prompt_fits(policy, config.rollout, q)]
    if not every:
        raise ConfigError(
            f"no train question leaves room for a turn within rollout.max_tokens={config.rollout.max_tokens}"
        )
    names = contrast_pool(environment) if config.reward.others else ()
    contrast = Contrast(environment, names, config.reward.others, config.seed, 0) if names else None
    require_room(policy, environment, every, config, contrast)
    questions = every[: config.rollout.questions]
    prompts = [len(policy.protocol.prompt(question.text)) for question in questions]
    call = environment.example_call(questions[0])
    found = environment.step([(Episode(questions[0]), call)])
    if found[0].failed:
        raise ConfigError(f"the tool {call.name} failed for {call.text!r}: see to its back end")
    observation = len(policy.protocol.observation(found[0].text))
    probes = answer_probes(policy, environment, config.reward, contrast) if config.reward.needs_beliefs else None
    probe = (
        max((len(p.prefix_ids) + len(p.answer_ids) for q in questions for p in probes(q)), default=0) if probes else 0
    )
    prompt = round(statistics.mean(prompts))
    turns = config.rollout.max_turns
    whole = prompt + turns * config.rollout.max_new_tokens + (turns - 1) * observation
    return Lengths(prompt, observation, probe, min(whole, config.rollout.max_tokens))


def usual_tokens(config: ExperimentConfig, environment: "Environment", policy: "Policy", lengths: Lengths) -> Tokens:
    """Return the tokens of a usual trajectory: that of a demonstration, after which trajectories are long, or half of what is
    allowed where none is taught."""
    from igpo_core.seeds import python_rng
    from igpo_core.warmstart import render

    stages = config.warm_start.stages if config.warm_start else ()
    if not stages:
        turns = config.rollout.max_turns / 2
        return Tokens(lengths.trajectory / 2, turns * config.rollout.max_new_tokens, turns * lengths.probe, 0.0)
    drawn = environment.demonstrations(python_rng(config.seed, "usual tokens"), LOOKED_AT, stages[-1].demonstrations)
    examples = [render(policy.protocol, item) for item in drawn]
    tokens = statistics.mean(len(example.ids) for example in examples)
    sampled = statistics.mean(sum(map(bool, example.weights)) for example in examples)
    turns = statistics.mean(len(item.turns) if isinstance(item, Demonstration) else 1 for item in drawn)
    return Tokens(tokens, sampled, turns * lengths.probe, tokens)
