"""Settings of `training` from a configuration file of accelerate's (`accelerate config` writes one).

What it says about processes, machines, sharding and precision is taken over; what this project does not do is refused with
the reason, so that nothing in the file is silently without effect.
"""

from pathlib import Path
from typing import Any

import yaml

from igpo_core.errors import ConfigError
from tasks.home import PROJECT

SHARDING = {"NO": "none", "MULTI_CPU": "none", "MULTI_GPU": "none", "FSDP": "fsdp"}
DTYPES = {"no": "float32", "bf16": "bfloat16"}


def take_over(base: dict[str, Any], where: str) -> dict[str, Any]:
    """`base` of a specification with training.accelerate_config replaced by what that file says.

    Raises ConfigError, naming file, key and remedy.
    """
    training = base.get("training")
    if not isinstance(training, dict) or "accelerate_config" not in training:
        return base
    path = PROJECT / str(training["accelerate_config"])
    said = _read(path)
    doubled = sorted(said["training"].keys() & training.keys())
    if doubled:
        raise ConfigError(f"{where}: training.{', '.join(doubled)} is also said by {path}: leave it out in one of them")
    dtype = (base.get("policy") or {}).get("dtype", "float32")
    if dtype != said["dtype"]:
        raise ConfigError(
            f"{path}: mixed_precision asks for {said['dtype']}, and policy.dtype is {dtype}: make them agree"
        )
    own = {name: value for name, value in training.items() if name != "accelerate_config"}
    return {**base, "training": {**own, **said["training"]}}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"training.accelerate_config={path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"training.accelerate_config={path} holds no settings")
    kind = str(content.get("distributed_type", "NO")).upper()
    if kind not in SHARDING:
        raise ConfigError(
            f"{path}: distributed_type={kind} is not done here ({', '.join(SHARDING)} are): FSDP with fsdp_version 2 spreads "
            "weights, gradients and moments as DeepSpeed's ZeRO-3 does"
        )
    nodes, count = int(content.get("num_machines", 1)), int(content.get("num_processes", 1))
    if count % nodes:
        raise ConfigError(f"{path}: num_processes={count} is no multiple of num_machines={nodes}")
    precision = str(content.get("mixed_precision") or "no")
    if precision not in DTYPES:
        raise ConfigError(f"{path}: mixed_precision={precision} is not done here: {', '.join(DTYPES)} are")
    _refuse(path, content, content.get("fsdp_config") or {}, kind == "FSDP")
    return {
        "dtype": DTYPES[precision],
        "training": {
            "device": "cpu" if content.get("use_cpu") or kind == "MULTI_CPU" else "cuda",
            "processes": count // nodes,
            "nodes": nodes,
            "sharding": SHARDING[kind],
        },
    }


def _refuse(path: Path, content: dict[str, Any], fsdp: dict[str, Any], sharded: bool) -> None:
    faults = {
        "dynamo_config": (content.get("dynamo_config"), "torch.compile does not pay here (docs/performance.md)"),
        "gpu_ids": (content.get("gpu_ids", "all") != "all", "set CUDA_VISIBLE_DEVICES instead"),
        "fsdp_version": (sharded and int(fsdp.get("fsdp_version", 1)) != 2, "set it to 2"),
        "fsdp_offload_params": (fsdp.get("fsdp_offload_params"), "weights stay on the accelerators: use more of them"),
        "fsdp_activation_checkpointing": (
            fsdp.get("fsdp_activation_checkpointing"),
            "set optimizer.gradient_checkpointing instead",
        ),
    }
    for key, (given, remedy) in faults.items():
        if given:
            raise ConfigError(f"{path}: {key} is not taken over: {remedy}, and leave it out")
