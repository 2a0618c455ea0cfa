"""Configuration files of accelerate's: what is taken over, and what is refused with a remedy."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from igpo_core.errors import ConfigError
from tasks.specification.accelerate_file import take_over

WRITTEN = {  # as `accelerate config` writes it for two machines with eight GPUs each, without the address
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "downcast_bf16": "no",
    "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": True, "fsdp_offload_params": False},
    "machine_rank": 0,
    "mixed_precision": "bf16",
    "num_machines": 2,
    "num_processes": 16,
    "use_cpu": False,
}


def base(path: Path, content: Any, **training: Any) -> dict[str, Any]:
    path.write_text(yaml.safe_dump(content))
    return {"policy": {"dtype": "bfloat16"}, "training": {"epochs": 3, "accelerate_config": str(path), **training}}


def test_what_it_says_is_taken_over(tmp_path: Path) -> None:
    taken = take_over(base(tmp_path / "a.yaml", WRITTEN), "preset")
    assert taken["training"] == {"epochs": 3, "device": "cuda", "processes": 8, "nodes": 2, "sharding": "fsdp"}
    alone = {"distributed_type": "MULTI_CPU", "num_processes": 2, "use_cpu": True, "mixed_precision": "bf16"}
    taken = take_over(base(tmp_path / "b.yaml", alone), "preset")
    assert taken["training"] == {"epochs": 3, "device": "cpu", "processes": 2, "nodes": 1, "sharding": "none"}
    assert take_over({"training": {"epochs": 3}}, "preset") == {"training": {"epochs": 3}} and take_over({}, "") == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"distributed_type": "DEEPSPEED"}, "DEEPSPEED is not done here .* as DeepSpeed's ZeRO-3 does"),
        ({"num_processes": 15}, "num_processes=15 is no multiple of num_machines=2"),
        ({"mixed_precision": "fp16"}, "mixed_precision=fp16 is not done here: no, bf16 are"),
        ({"mixed_precision": "no"}, "asks for float32, and policy.dtype is bfloat16"),
        ({"fsdp_config": {}}, "fsdp_version=1 is not taken over: set it to 2"),
        (
            {"fsdp_config": {"fsdp_version": 2, "fsdp_offload_params": True}},
            "fsdp_offload_params=True .* use more of them",
        ),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "torch.compile does not pay"),
        ({"gpu_ids": "0,1"}, "set CUDA_VISIBLE_DEVICES instead"),
        ({"main_process_ip": "10.0.0.1"}, "main_process_ip=10.0.0.1 is not taken over: set IGPO_ADDRESS to it"),
        ({"main_process_port": 1234}, "main_process_port=1234 .* a free one is chosen"),
        ({"enable_cpu_affinity": True}, "enable_cpu_affinity=True is not taken over"),
        ({"ipex_config": {"ipex": True}}, "ipex_config is not known here"),
        ({"fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": False}}, "fsdp_reshard_after_forward=False"),
        ({"fsdp_config": {"fsdp_version": 2, "fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}}, "a unit is a decoder layer"),
        ({"fsdp_config": {"fsdp_version": 2, "fsdp_min_num_params": 100}}, "fsdp_min_num_params is not known here"),
        (
            {"fsdp_config": {"fsdp_version": 2, "fsdp_transformer_layer_cls_to_wrap": "BertLayer"}},
            "=BertLayer is not done",
        ),
        ({"distributed_type": "MULTI_GPU"}, "fsdp_config without distributed_type FSDP has no effect"),
        ({"parallelism_config": {"parallelism_config_tp_size": 2}}, "parallelism_config_tp_size=2 is not done here"),
    ],
)
def test_what_would_be_without_effect_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        take_over(base(tmp_path / "a.yaml", {**WRITTEN, **changes}), "preset")


@pytest.mark.parametrize("kind", ["MULTI_GPU", "FSDP", "MULTI_CPU", "NO"])
def test_what_accelerate_itself_writes_passes(tmp_path: Path, kind: str) -> None:
    """Its own class writes the file, with what its questions ask for when each is answered with the default."""
    from accelerate.commands.config.config_args import ClusterConfig

    fsdp = {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": True,
        "fsdp_offload_params": False,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "Qwen2DecoderLayer",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_activation_checkpointing": False,
    }
    sizes = {f"parallelism_config_{name}_size": 1 for name in ("dp_replicate", "dp_shard", "tp", "cp")}
    written = ClusterConfig(
        compute_environment="LOCAL_MACHINE", distributed_type=kind, mixed_precision="bf16", use_cpu=kind == "MULTI_CPU",
        debug=False, num_processes=1 if kind == "NO" else 8, gpu_ids="all" if kind in ("NO", "MULTI_GPU") else None,
        same_network=True, downcast_bf16="no", tpu_env=[], fsdp_config=fsdp if kind == "FSDP" else {},
        parallelism_config=sizes if kind == "FSDP" else {},
    )  # fmt: skip
    written.to_yaml_file(str(tmp_path / "a.yaml"))
    content = yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert content["tpu_env"] == [] and content["main_training_function"] == "main"
    taken = take_over(base(tmp_path / "a.yaml", content), "preset")["training"]
    assert taken["sharding"] == ("fsdp" if kind == "FSDP" else "none") and taken["nodes"] == 1
    assert taken["processes"] == (1 if kind == "NO" else 8)


def test_a_setting_given_twice_and_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"preset: training\.processes is also said by .*a\.yaml"):
        take_over(base(tmp_path / "a.yaml", WRITTEN, processes=4), "preset")
    for content, reason in (("[1", "cannot be read"), ("- 1", "holds no settings")):
        (tmp_path / "c.yaml").write_text(content)
        with pytest.raises(ConfigError, match=reason):
            take_over({"training": {"accelerate_config": str(tmp_path / "c.yaml")}}, "preset")
