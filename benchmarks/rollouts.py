"""Multi-turn rollout on one KV cache against `model.generate` called anew on the whole history each turn.

python -m benchmarks.rollouts [--repeats N]
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks.common import alternate, ratios, scripted, show, spread
from benchmarks.models import QWEN2_TINY, ConstantSearch, policy, questions, turn_script
from igpo_core.config import RolloutConfig
from igpo_core.policies import Policy
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.trajectory import Episode, Question, ToolCall


class Script(LogitsProcessor):  # type: ignore[misc]
    """The next token of the turn gets all probability: the counterpart of benchmarks.common.scripted."""

    def __init__(self, script: Sequence[int], width: int) -> None:
        self.script, self.width = script, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.script[input_ids.shape[1] - self.width]] = 0.0
        return forced


@torch.no_grad()
def generate_anew(
    of: Policy, search: ConstantSearch, asked: Sequence[Question], members: int, turns: int, script: Sequence[int]
) -> int:
    """Left-padded histories, sampled by transformers turn by turn; returns the tokens of one trajectory."""
    histories = [of.protocol.prompt(question.text) for question in asked for _ in range(members)]
    everyone = [question for question in asked for _ in range(members)]
    for turn in range(turns):
        width = max(map(len, histories))
        ids = torch.tensor([[of.protocol.pad_id] * (width - len(h)) + h for h in histories], device=of.model.device)
        mask = torch.tensor([[0] * (width - len(h)) + [1] * len(h) for h in histories], device=of.model.device)
        out = of.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=len(script),
            logits_processor=LogitsProcessorList([Script(script, width)]),
            pad_token_id=of.protocol.pad_id,
        )
        histories = [h + row[width:].tolist() for h, row in zip(histories, out, strict=True)]
        if turn < turns - 1:
            for question, history in zip(everyone, histories, strict=True):
                action = of.protocol.parse(history[-len(script) :])
                assert isinstance(action, ToolCall)
                history += of.protocol.observation(search.step([(Episode(question), action)])[0].text)
    return len(histories[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    of, search, asked, members = policy(QWEN2_TINY), ConstantSearch(60), questions(2), 8
    script = turn_script(of, 8)
    rows = []
    for turns in (2, 4, 8):
        settings: Any = RolloutConfig(
            questions=2, group_size=members, max_turns=turns, max_new_tokens=len(script), max_tokens=16_384
        )

        def ours(settings: Any = settings) -> int:
            with scripted(script):
                return len(rollout(of, search, asked, settings, members=members, key=(0, "bench", 0))[0].token_ids)  # type: ignore[arg-type]

        def theirs(turns: int = turns) -> int:
            return generate_anew(of, search, asked, members, turns, script)

        tokens = ours()
        assert tokens == theirs(), "the two rollouts have different lengths"
        peer, own = alternate({"generate anew": theirs, "one cache": ours}, repeats)
        sampled = len(asked) * members * turns * len(script)
        rows.append(
            (
                f"{turns} turns, {tokens} tokens",
                f"{spread(ratios(peer, own), 1)} times faster; {sampled / own.median:,.0f} sampled tokens/s "
                f"against {sampled / peer.median:,.0f}",
            )
        )
    show(
        "multi-turn rollout, one KV cache against model.generate anew each turn: a tiny Qwen2, 16 trajectories",
        "at least 3 times faster at 8 turns",
        rows,
        repeats,
    )


if __name__ == "__main__":
    main()
