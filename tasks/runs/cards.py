"""Accelerators that a run's memory and time are counted for, by their makers' data sheets."""

import re

from tasks.runs.devices import accelerators

# GiB, dense operations a second in bfloat16 and in float32, bytes a second: the makers' data sheets
ACCELERATORS = {
    "L4 24 GB": (22, 121e12, 30e12, 0.30e12),
    "A100 80 GB": (79, 312e12, 19.5e12, 2.0e12),
    "H100 80 GB": (79, 989e12, 67e12, 3.35e12),
    "H200 141 GB": (139, 989e12, 67e12, 4.8e12),
}


def card_here() -> str | None:
    """Return the row of ACCELERATORS that this machine's first accelerator is; None where there is none or it is another one.

    A word of its name says so, and its memory: other models of a name, and parts of a card (MIG), have less.
    """
    if not accelerators():
        return None
    import torch

    from igpo_core.estimates import GIB

    card = torch.cuda.get_device_properties(0)
    words = re.split(r"\W+", card.name)
    for name, (gib, *_) in ACCELERATORS.items():
        if name.split()[0] in words and card.total_memory > 0.95 * gib * GIB:
            return name
    return None
