"""Seconds as a device counts them: work on a GPU goes on after the call that asked for it has returned."""

import time

import torch


def now(device: torch.device) -> float:
    """The clock's reading, once the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
