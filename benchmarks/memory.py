"""Peak memory of an update's vocabulary projection at vocabulary 151,936 against full-logits cross-entropy.

python -m benchmarks.memory [--tokens 8192] [--vocabulary 151936]. Each side runs in a process of its own.
"""

import argparse
import resource
import subprocess
import sys
import time

from benchmarks.common import show

WIDTH = 896  # Qwen2-0.5B


def measure(side: str, tokens: int, vocabulary: int) -> None:
    """Prints peak bytes above what the process held before, seconds, and the loss."""
    import torch

    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, vocabulary, bias=False)
    hidden, targets = torch.randn(tokens, WIDTH, requires_grad=True), torch.randint(vocabulary, (tokens,))
    head.weight.grad = torch.zeros_like(head.weight)  # both sides need it
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter()
    if side == "full":
        loss = torch.nn.functional.cross_entropy(head(hidden).float(), targets)
    else:
        from igpo_core.logprobs import target_logprobs

        loss = -target_logprobs(head, hidden, targets).mean()
    loss.backward()
    print(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, time.perf_counter() - started, loss.item()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--side", choices=["full", "chunked"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        measure(chosen.side, chosen.tokens, chosen.vocabulary)
        return
    found = {}
    for side in ("full", "chunked"):
        command = [sys.executable, "-m", "benchmarks.memory", "--side", side]
        command += ["--tokens", str(chosen.tokens), "--vocabulary", str(chosen.vocabulary)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[side] = [float(part) for part in done.stdout.split()]
    assert abs(found["full"][2] - found["chunked"][2]) < 1e-4, "the two losses differ"
    rows = [(side, f"{size / 2**30:.2f} GiB, {seconds:.1f} s") for side, (size, seconds, _) in found.items()]
    rows.append(("chunked / full", f"{found['chunked'][0] / found['full'][0]:.3f} of the memory"))
    show(
        f"peak memory of projection, loss and gradient: {chosen.tokens} tokens, vocabulary {chosen.vocabulary}, float32",
        "at most a quarter",
        rows,
        1,
    )


if __name__ == "__main__":
    main()
