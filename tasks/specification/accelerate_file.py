"""Settings of `training` from a configuration file of accelerate's (`accelerate config` writes one).

What it says about processes, machines, sharding and precision is taken over. Whatever else it says must be what is done here
anyway, and is refused with the remedy otherwise, unknown keys too: nothing in the file is silently without effect.
"""

from pathlib import Path
from typing import Any

from igpo_core.errors import ConfigError
from igpo_core.folders import read_yaml
from tasks.lab.home import PROJECT

TAKEN = {
    "distributed_type",
    "mixed_precision",
    "num_machines",
    "num_processes",
    "use_cpu",
    "fsdp_config",
    "parallelism_config",
}
# Values that say what is done here anyway (accelerate 1.15: commands/config/cluster.py); the remedy where another is given.
SAME: dict[str, tuple[tuple[Any, ...], str]] = {
    "compute_environment": (("LOCAL_MACHINE",), "runs elsewhere are started by a Prefect worker there"),
    "machine_rank": ((0,), "the flow `join` numbers the machines; give the file of the first one"),
    "main_process_ip": ((None,), "set IGPO_ADDRESS to it where runs are started"),
    "main_process_port": ((None,), "a free one is chosen"),
    "rdzv_backend": (("static", None), "machines meet where IGPO_ADDRESS says"),
    "same_network": ((True, False, None), ""),  # IGPO_ADDRESS says how the others reach the first one
    "main_training_function": (("main", None), "the flow `train` has one of its own"),
    "debug": ((False, None), "set TORCH_DISTRIBUTED_DEBUG=DETAIL instead"),
    "enable_cpu_affinity": ((False, None), "start the worker under numactl instead"),
    "gpu_ids": (("all", None), "set CUDA_VISIBLE_DEVICES instead"),
    "downcast_bf16": (("no", False, None), "there are no TPUs here"),
    "tpu_env": (([], None), "there are no TPUs here"),
    "tpu_use_cluster": ((False, None), "there are no TPUs here"),
    "tpu_use_sudo": ((False, None), "there are no TPUs here"),
    "dynamo_config": (({}, None), "torch.compile does not pay here (docs/performance.md)"),
    "deepspeed_config": (({}, None), "FSDP2 does what ZeRO-3 does"),
    "megatron_lm_config": (({}, None), "FSDP2 spreads weights, gradients and moments"),
    "mpirun_config": (({}, None), "torch's own launcher starts the processes"),
    "fp8_config": (({}, None), "float32 and bfloat16 are what is computed in"),
}
SAME_FSDP: dict[str, tuple[tuple[Any, ...], str]] = {
    "fsdp_version": ((2,), "set it to 2"),
    "fsdp_reshard_after_forward": ((True,), "weights are spread again after each layer"),
    "fsdp_offload_params": ((False,), "weights stay on the accelerators: use more of them"),
    "fsdp_auto_wrap_policy": (("TRANSFORMER_BASED_WRAP",), "a unit is a decoder layer"),
    "fsdp_state_dict_type": (("SHARDED_STATE_DICT",), "checkpoints hold whole weights, and moments in shards"),
    # how weights are read changes no number: each process reads them, whichever is said
    "fsdp_cpu_ram_efficient_loading": ((True, False), ""),
    "fsdp_activation_checkpointing": ((False,), "set optimizer.gradient_checkpointing instead"),
}
WRAPPED = "fsdp_transformer_layer_cls_to_wrap"
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
    policy = base.get("policy")
    dtype = policy.get("dtype", "float32") if isinstance(policy, dict) else "float32"
    if dtype != said["dtype"]:
        raise ConfigError(
            f"{path}: mixed_precision asks for {said['dtype']}, and policy.dtype is {dtype}: make them agree"
        )
    own = {name: value for name, value in training.items() if name != "accelerate_config"}
    return {**base, "training": {**own, **said["training"]}}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(f"training.accelerate_config cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"training.accelerate_config={path} holds no settings")
    kind = str(content.get("distributed_type", "NO")).upper()
    if kind not in SHARDING:
        raise ConfigError(
            f"{path}: distributed_type={kind} is not done here ({', '.join(SHARDING)} are): FSDP with fsdp_version 2 spreads "
            "weights, gradients and moments as DeepSpeed's ZeRO-3 does"
        )
    nodes, count = (_count(path, content, name) for name in ("num_machines", "num_processes"))
    if count % nodes:
        raise ConfigError(f"{path}: num_processes={count} is no multiple of num_machines={nodes}")
    precision = str(content.get("mixed_precision") or "no")
    if precision not in DTYPES:
        raise ConfigError(f"{path}: mixed_precision={precision} is not done here: {', '.join(DTYPES)} are")
    _refuse(path, {key: value for key, value in content.items() if key not in TAKEN}, SAME)
    fsdp = dict(_section(path, content, "fsdp_config"))
    if kind == "FSDP":
        layers = str(fsdp.pop(WRAPPED, "DecoderLayer"))
        if "," in layers or not layers.endswith("DecoderLayer"):
            raise ConfigError(f"{path}: {WRAPPED}={layers} is not done here: a unit is a decoder layer; leave it out")
        _refuse(path, {"fsdp_version": 1, **fsdp}, SAME_FSDP)
    elif fsdp:
        raise ConfigError(f"{path}: fsdp_config without distributed_type FSDP has no effect: leave one of them out")
    _refuse_parallelism(path, _section(path, content, "parallelism_config"), count)
    return {
        "dtype": DTYPES[precision],
        "training": {
            "device": "cpu" if content.get("use_cpu") or kind == "MULTI_CPU" else "cuda",
            "processes": count // nodes,
            "nodes": nodes,
            "sharding": SHARDING[kind],
        },
    }


def _count(path: Path, content: dict[str, Any], name: str) -> int:
    value = content.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{path}: {name}={value!r} is no whole number from 1 on")
    return value


def _section(path: Path, content: dict[str, Any], name: str) -> dict[Any, Any]:
    value = content.get(name) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {name} is {type(value).__name__}, not settings with their values")
    return value


def _refuse(path: Path, given: dict[str, Any], same: dict[str, tuple[tuple[Any, ...], str]]) -> None:
    for key, value in given.items():
        if key not in same:
            raise ConfigError(f"{path}: {key} is not known here and would have no effect: leave it out")
        values, remedy = same[key]
        if value not in values:
            raise ConfigError(f"{path}: {key}={value} is not taken over: {remedy}, and leave it out")


def _refuse_parallelism(path: Path, given: dict[str, Any], processes: int) -> None:
    for key, value in given.items():
        sizes = (1, processes) if key == "parallelism_config_dp_shard_size" else (1,)
        if not str(key).endswith("_size") or value not in sizes:
            raise ConfigError(
                f"{path}: {key}={value} is not done here: weights are spread over all processes, and nothing else is; leave "
                "parallelism_config out"
            )
