"""Configuration files of accelerate's: what is taken over, and what is refused with a remedy."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.accelerate_file import take_over
from igpo_core.errors import ConfigError

WRITTEN = {  # as `accelerate config` writes it for two machines with eight GPUs each
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "downcast_bf16": "no",
    "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": True, "fsdp_offload_params": False},
    "machine_rank": 0,
    "main_process_ip": "10.0.0.1",
    "main_process_port": 29500,
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
        ({"fsdp_config": {}}, "fsdp_version is not taken over: set it to 2"),
        ({"fsdp_config": {"fsdp_version": 2, "fsdp_offload_params": True}}, "fsdp_offload_params .* use more of them"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "torch.compile does not pay"),
        ({"gpu_ids": "0,1"}, "set CUDA_VISIBLE_DEVICES instead"),
    ],
)
def test_what_would_be_without_effect_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        take_over(base(tmp_path / "a.yaml", {**WRITTEN, **changes}), "preset")


def test_a_setting_given_twice_and_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"preset: training\.processes is also said by .*a\.yaml"):
        take_over(base(tmp_path / "a.yaml", WRITTEN, processes=4), "preset")
    for content, reason in (("[1", "cannot be read"), ("- 1", "holds no settings")):
        (tmp_path / "c.yaml").write_text(content)
        with pytest.raises(ConfigError, match=reason):
            take_over({"training": {"accelerate_config": str(tmp_path / "c.yaml")}}, "preset")
