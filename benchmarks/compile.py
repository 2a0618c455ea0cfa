"""Whether torch.compile pays for the update: seconds of a step with and without, and after how many steps it is even.

python -m benchmarks.compile [--repeats N]. The decoder is compiled with dynamic shapes, as lengths change at every step.
"""

import argparse
import time
from collections.abc import Callable

import torch

from benchmarks.common import alternate, ratios, show, spread
from benchmarks.models import QWEN2_TINY, policy


def steps_of(decoder: torch.nn.Module, vocabulary: int) -> Callable[[int], None]:
    def step(width: int) -> None:
        tokens = torch.randint(vocabulary, (8, width), generator=torch.Generator().manual_seed(width))
        tokens = tokens.to(next(decoder.parameters()).device)
        decoder(input_ids=tokens, use_cache=False).last_hidden_state.square().mean().backward()
        decoder.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    plain = policy(QWEN2_TINY).model.get_decoder()
    compiled = torch.compile(policy(QWEN2_TINY).model.get_decoder(), dynamic=True)
    widths = (173, 311, 498, 760)
    sides = {name: steps_of(of, 2000) for name, of in (("eager", plain), ("compiled", compiled))}
    started = time.perf_counter()
    for width in widths:
        sides["compiled"](width)
    warm = time.perf_counter() - started

    def all_of(name: str) -> Callable[[], None]:
        def call() -> None:
            for width in widths:
                sides[name](width)

        return call

    eager, fast = alternate({name: all_of(name) for name in sides}, repeats)
    saved = (eager.median - fast.median) / len(widths)
    even = f"{(warm - fast.median) / saved:,.0f} steps" if saved > 0 else "never"
    show(
        "the update's forward and backward pass under torch.compile: a tiny Qwen2, 8 trajectories of 173 to 760 tokens",
        "only where it pays",
        [
            ("eager, 4 steps", eager.text),
            ("compiled, 4 steps", f"{fast.text}: {spread(ratios(eager, fast))} times faster"),
            ("compiling", f"{warm:.0f} s, even after {even}"),
        ],
        repeats,
    )


if __name__ == "__main__":
    main()
