"""Accelerators that a run's memory and time are counted for, by their makers' data sheets."""

from tasks.runs.devices import accelerators

# GiB, dense operations a second in bfloat16 and in float32, bytes a second: the makers' data sheets
ACCELERATORS = {
    "L4 24 GB": (22, 121e12, 30e12, 0.30e12),
    "A100 80 GB PCIe": (79, 312e12, 19.5e12, 1.94e12),
    "A100 80 GB SXM": (79, 312e12, 19.5e12, 2.0e12),
    "H100 80 GB SXM": (79, 989e12, 67e12, 3.35e12),
    "H200 141 GB SXM": (139, 989e12, 67e12, 4.8e12),
}
# what CUDA calls them
NAMES = {
    "NVIDIA L4": "L4 24 GB",
    "NVIDIA A100 80GB PCIe": "A100 80 GB PCIe",
    "NVIDIA A100-SXM4-80GB": "A100 80 GB SXM",
    "NVIDIA H100 80GB HBM3": "H100 80 GB SXM",
    "NVIDIA H200": "H200 141 GB SXM",
}


def card_here() -> str | None:
    """Return the row of ACCELERATORS that this machine's first accelerator is; None where there is none or it is another one.

    Its whole name says so: cards whose names begin alike (H100 PCIe, H100 NVL, parts of a card by MIG) have other figures.
    """
    if not accelerators():
        return None
    import torch

    return NAMES.get(torch.cuda.get_device_properties(0).name)
