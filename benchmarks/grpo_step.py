"""A whole GRPO step with a search tool against TRL's GRPOTrainer with tools: same model, rollouts, turns and tokens.

python -m benchmarks.grpo_step [--turns 4] [--repeats N]. TRL comes with the extra [bench]; the product never imports it.
Both sides sample from the same random model; the sampled tokens are forced to a search call, because a random model makes
none, and all that a real choice costs is still paid. Both update once on all rollouts, without KL.
"""

import argparse
import tempfile
from importlib.resources import files
from typing import Any

import torch
from transformers import LogitsProcessorList

from benchmarks.common import alternate, ratios, scripted, show, spread
from benchmarks.gain import configuration, step_of
from benchmarks.models import QWEN2_TINY, ConstantSearch, Fixed, policy, questions, words
from benchmarks.rollouts import Script

PROMPTS, MEMBERS = 2, 8


def trl_step(of: Any, tool_text: str, call: list[int], turns: int, lengths: list[int]) -> Any:
    """A function that makes one step of TRL's trainer; the lengths of its trajectories go into `lengths`."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def search(query: str) -> str:
        """
        Search the passages.

        Args:
            query: What to look for.
        """
        return tool_text

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(len(ids) for ids in completion_ids)
        return [float(place % 3) for place in range(len(completions))]  # a spread, so that there is a gradient

    rows = [{"prompt": [{"role": "user", "content": question.text}]} for question in questions(PROMPTS)]
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=PROMPTS * MEMBERS,
        num_generations=MEMBERS,
        max_completion_length=8192,
        max_tool_calling_iterations=turns - 1,
        learning_rate=1e-12,
        beta=0.0,
        max_steps=10**6,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    trainer = GRPOTrainer(
        model=of.model,
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_list(rows * 100),
        processing_class=of.protocol.tokenizer,
        tools=[search],
    )
    generate = of.model.generate

    def forced(**arguments: Any) -> Any:
        script = Script(call, arguments["input_ids"].shape[1])
        settings = arguments["generation_config"]
        settings.max_new_tokens = len(call)
        return generate(**arguments, logits_processor=LogitsProcessorList([script]))

    trainer.model.generate = forced
    trainer.current_gradient_accumulation_steps = 1  # what trainer.train() sets, which cannot be entered step by step
    trainer.create_optimizer_and_scheduler(10**6)
    batches = iter(trainer.get_train_dataloader())

    def step() -> None:
        trainer._step = 0  # rollouts anew at each step
        trainer.model.train()
        trainer.training_step(trainer.model, next(batches), None)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    template = (files("trl") / "chat_templates" / "qwen2_5.jinja").read_text()
    # TRL parses and renders with Qwen2.5's own template; ours has frames of equal token count up to a few tokens
    theirs, ours = policy(QWEN2_TINY), policy(QWEN2_TINY)
    theirs.protocol.tokenizer.chat_template = template
    call = '<tool_call>\n{"name": "search", "arguments": {"query": "ka ro min tel"}}\n</tool_call><|im_end|>'
    call_ids = theirs.protocol.tokenizer(call, add_special_tokens=False)["input_ids"]
    own_script = ours.protocol.tokenizer(f"<think>\n</think>\n{call}", add_special_tokens=False)["input_ids"]
    filler = theirs.protocol.tokenizer(words(40, 9), add_special_tokens=False)["input_ids"]
    peer_script = [
        *filler[: len(own_script) - len(call_ids)],
        *call_ids,
    ]  # plain text where ours thinks: as many tokens
    search = ConstantSearch(60)
    lengths: list[int] = []
    peer_step = trl_step(theirs, search.text, peer_script, chosen.turns, lengths)
    rollout_settings = {
        "questions": PROMPTS, "group_size": MEMBERS, "max_turns": chosen.turns, "max_new_tokens": len(own_script),
        "max_tokens": 8192,
    }  # fmt: skip
    environment = Fixed(questions(PROMPTS), 60)
    own_step = step_of(configuration("outcome_only", **rollout_settings), ours, environment, MEMBERS)
    own_gain_step = step_of(configuration("outcome_and_gain", **rollout_settings), ours, environment, MEMBERS)
    with scripted(own_script):
        peer, own, gain = alternate(
            {"TRL": peer_step, "igpo-lab, outcome only": own_step, "igpo-lab, with the gain": own_gain_step},
            chosen.repeats,
        )
    show(
        f"a GRPO step with a search tool against TRL: a tiny Qwen2, {PROMPTS * MEMBERS} rollouts of {chosen.turns} turns; "
        f"{len(own_script)} sampled tokens a turn on both sides; TRL's completions {lengths[-1]} tokens",
        "at least 3 times faster",
        [
            ("TRL GRPOTrainer", peer.text),
            (own.name, f"{own.text}: {spread(ratios(peer, own), 1)} times faster"),
            (gain.name, f"{gain.text}: {spread(ratios(peer, gain), 1)} times faster"),
        ],
        chosen.repeats,
    )


if __name__ == "__main__":
    main()
