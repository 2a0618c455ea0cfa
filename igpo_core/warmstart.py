"""Supervised warm start from demonstrations: the skill is taught, its sparse use is made on purpose where asked for."""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from igpo_core.batching import token_batches
from igpo_core.checkpoints import STATE, checkpoint_folder, load_weights, newest_checkpoint, write_folder
from igpo_core.config import ExperimentConfig, WarmStartStage
from igpo_core.environments.base import Demonstration, Environment, Lesson
from igpo_core.errors import ConfigError
from igpo_core.memory import within_memory
from igpo_core.policies import Policy, save_policy
from igpo_core.protocol import TurnProtocol, WordProtocol
from igpo_core.seeds import python_rng
from igpo_core.trajectory import ToolCall
from igpo_core.weights import trained

SECONDS = 120.0  # between two checkpoints of a warm start
# glibc keeps freed memory up to twice the largest block that was freed, 32 MiB at most; it hands the rest back to the system and
# asks for it again at each step. One such block, freed once, makes a step of a small policy 13 % shorter (docs/performance.md).
LARGE_BLOCK = 31 * 2**20  # bytes


@dataclass(frozen=True)
class Example:
    """Token ids, a loss weight for each (0: not trained), and soft targets by place: {place: ((token id, share), ..)}."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    soft: dict[int, tuple[tuple[int, float], ...]]


def render(protocol: TurnProtocol, item: Demonstration | Lesson) -> Example:
    """The token sequence that a rollout of the same turns would have: same prompt, same frames, same stop tokens."""
    if isinstance(item, Lesson):
        ids = protocol.lesson(item.words)
        if len(ids) != len(item.weights) + 1:
            raise ConfigError("lessons need a tokenizer with one token a word: use tokenizer=words")
        return Example(tuple(ids), (0.0, *item.weights), {})
    ids = protocol.prompt(item.question.text)
    weights = [0.0] * len(ids)
    soft: dict[int, tuple[tuple[int, float], ...]] = {}
    for turn in item.turns:
        tokens, body = protocol.turn(turn.thought, turn.action)
        if turn.target and not isinstance(protocol, WordProtocol):  # elsewhere a word is no one token at a known place
            raise ConfigError(
                "these demonstrations train a word towards a distribution, which takes one token a word: use policy.kind=new "
                "with policy.tokenizer=words"
            )
        if turn.target:
            soft[len(ids) + body.start + turn.target_place] = tuple(
                (_token(protocol, word), share) for word, share in turn.target
            )
        inner = 1.0 if isinstance(turn.action, ToolCall) else turn.answer_weight
        weights += [inner if body.start <= k < body.stop else 1.0 for k in range(len(tokens))]
        ids += tokens
        if turn.observation is not None:
            seen = protocol.observation(turn.observation)
            ids += seen
            weights += [0.0] * len(seen)
    return Example(tuple(ids), tuple(weights), soft)


def _token(protocol: TurnProtocol, word: str) -> int:
    index: int | None = protocol.tokenizer.backend_tokenizer.token_to_id(word)
    if index is None:
        raise ConfigError(f"{word!r} is no token of its own, as a soft target has to be: use tokenizer=words")
    return index


def _backward(policy: Policy, examples: Sequence[Example], budget: int) -> float:
    """Gradients of the mean loss over all trained tokens, batch by batch; returns that loss."""
    count = sum(map(bool, (weight for example in examples for weight in example.weights)))
    total = 0.0
    for batch in token_batches(range(len(examples)), [len(example.ids) for example in examples], budget):
        with policy.precision():
            loss = supervised_loss(policy, [examples[i] for i in batch]) / count
        torch.autograd.backward(loss)
        total += loss.item()
    return total


def supervised_loss(policy: Policy, examples: Sequence[Example]) -> torch.Tensor:
    """Weighted cross-entropy, soft where a place has a soft target, summed over the trained tokens."""
    width = max(len(example.ids) for example in examples)
    tokens = torch.full((len(examples), width), policy.protocol.pad_id, device=policy.model.device)
    for i, example in enumerate(examples):
        tokens[i, : len(example.ids)] = torch.tensor(example.ids)
    hidden = policy.model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    places = [(i, k) for i, item in enumerate(examples) for k, weight in enumerate(item.weights) if weight]
    owner, place = torch.tensor(places, device=tokens.device).T
    logprobs = torch.log_softmax(policy.model.get_output_embeddings()(hidden[owner, place - 1]).float(), -1)
    weights = torch.tensor([examples[i].weights[k] for i, k in places], device=tokens.device)
    hard = torch.tensor([k not in examples[i].soft for i, k in places], device=tokens.device)
    losses = -logprobs.gather(1, tokens[owner, place][:, None])[:, 0]
    targets = [(n, token, share) for n, (i, k) in enumerate(places) for token, share in examples[i].soft.get(k, ())]
    if targets:
        row, token, share = (torch.tensor(column, device=tokens.device) for column in zip(*targets, strict=True))
        spread = torch.zeros_like(losses).index_add(0, row, -share.float() * logprobs[row, token])
        losses = torch.where(hard, losses, spread)
    return (weights * losses).sum()


@dataclass(frozen=True)
class _Progress:
    """How far a warm start is. Demonstrations and their order follow from stage and step."""

    stage: int = 0
    """The stage that goes on, from 0."""
    step: int = 0
    """Steps done of it."""
    done: int = 0
    """Steps done of all stages."""
    left_out: int = 0
    """Demonstrations that did not fit."""
    losses: dict[str, float] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    """State of the stage's optimizer."""
    torch_rng: Any = None


def run_warm_start(
    config: ExperimentConfig,
    environment: Environment,
    policy: Policy,
    *,
    progress: Callable[[int, int, dict[str, float]], None],
    folder: Path | None = None,
    every: float = SECONDS,
    warn: Callable[[str], None] = print,
) -> dict[str, float]:
    """Run every stage in place; progress(steps done, steps in all, metrics) after each tenth step.

    Returns the last loss of each stage, and how many demonstrations were left out because they do not fit.
    Demonstrations and their order depend on config.seed alone.

    folder: of checkpoints, one each `every` seconds; a warm start that was killed goes on from the newest whole one, with the
    same bits as one that never stopped. None: it is made in one go. warn: told of a damaged checkpoint.
    """
    if config.warm_start is None:
        raise ConfigError("this configuration has no warm start")
    stages = config.warm_start.stages
    total = sum(stage.steps for stage in stages)
    before = _restore(folder, policy, warn) if folder else _Progress()
    done, left_out, losses = before.done, before.left_out, dict(before.losses)
    saved = time.monotonic()
    torch.empty(LARGE_BLOCK, dtype=torch.uint8)  # freed at once
    for number, stage in enumerate(stages[before.stage :], start=before.stage):
        optimizer = torch.optim.AdamW(
            trained(policy.model), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        first = 0
        if number == before.stage and before.optimizer is not None:
            optimizer.load_state_dict(before.optimizer)
            first = before.step
        for step in range(first, stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * schedule(stage, step)
            rng = python_rng(config.seed, "warm start", number, step)
            items = environment.demonstrations(rng, stage.batch_size, stage.demonstrations)
            rendered = [render(policy.protocol, item) for item in items]
            examples = [example for example in rendered if len(example.ids) <= config.rollout.max_tokens]
            left_out += len(rendered) - len(examples)
            if not examples:
                raise ConfigError(f"no demonstration fits rollout.max_tokens={config.rollout.max_tokens}: raise it")
            optimizer.zero_grad()
            with within_memory("warm start", config):
                loss = _backward(policy, examples, config.optimizer.tokens_per_batch)
                torch.nn.utils.clip_grad_norm_(trained(policy.model), 1.0)
                optimizer.step()
            done += 1
            losses[f"warm_start/stage_{number + 1}_loss"] = loss
            if done % 10 == 0 or done == total:
                progress(done, total, {"warm_start/loss": loss, "warm_start/stage": float(number + 1)})
            if folder is not None and done < total and time.monotonic() - saved >= every:
                state = optimizer.state_dict()
                _save(folder, policy, _Progress(number, step + 1, done, left_out, losses, state, torch.get_rng_state()))
                saved = time.monotonic()
    return {**losses, "warm_start/left_out": float(left_out)}


def _save(folder: Path, policy: Policy, progress: _Progress) -> None:
    """Write a checkpoint; keep it alone."""
    place = checkpoint_folder(folder, progress.done)

    def fill(path: Path) -> None:
        save_policy(policy, path)
        try:
            torch.save(vars(progress), path / STATE)
        except RuntimeError as error:  # torch reports a full disk as RuntimeError
            raise OSError(f"{STATE}: {error}") from error

    write_folder(place, fill)
    for other in place.parent.glob("step-*"):
        if other != place:
            shutil.rmtree(other)


def _restore(folder: Path, policy: Policy, warn: Callable[[str], None]) -> _Progress:
    place = newest_checkpoint(folder, warn)
    if place is None:
        return _Progress()
    load_weights(place, policy.model)
    found = _Progress(**torch.load(place / STATE, map_location="cpu", weights_only=True))
    torch.set_rng_state(found.torch_rng)
    return found


def schedule(stage: WarmStartStage, step: int) -> float:
    """Share of the learning rate at a step: linear warm-up times a cosine from 1 to final_share."""
    warm = min(1.0, (step + 1) / stage.warmup_steps) if stage.warmup_steps else 1.0
    return warm * (stage.final_share + (1 - stage.final_share) * 0.5 * (1 + math.cos(math.pi * step / stage.steps)))
