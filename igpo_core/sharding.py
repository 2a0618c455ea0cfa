"""Weights, gradients and moments spread over the processes that train together: torch's FSDP2, a unit a decoder layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(module: torch.nn.Module, model: Any) -> None:
    """Spread `module`, which wraps the causal LM `model`, over all processes, in place. Its parameters become DTensors: make
    the optimizer afterwards. Call it on all processes, after their group was made."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(model.device.type, (torch.distributed.get_world_size(),))
    for unit in (*model.get_decoder().layers, module):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: Any) -> bool:
    """Return whether some layer is spread over processes."""
    return any(isinstance(layer, FSDPModule) for layer in model.modules())


@contextmanager
def whole_weights(module: torch.nn.Module) -> Iterator[None]:
    """Within the block every process has all weights and can make any number of forward passes of the parts of `module`
    without gradient, which do not wait for the others. All processes must enter it. Nothing happens to a module that is
    not sharded. Costs a copy of the weights in memory."""
    units = [unit for unit in module.modules() if isinstance(unit, FSDPModule)]
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def full_state(model: Any) -> dict[str, torch.Tensor] | None:
    """All weights in the first process's memory, {} in the others', which must call it too; None of a model that is not
    sharded, whose own are whole."""
    if not is_sharded(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    found: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return found
