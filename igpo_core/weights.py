"""Which weights are trained, LoRA adapters among them, and copies of them that can stand in for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from igpo_core.config import Lora
from igpo_core.errors import ConfigError
from igpo_core.seeds import derive

ADAPTER = "adapter_config.json"  # peft's; a folder with it holds an adapter, no whole model


def trained(model: Any) -> list[torch.nn.Parameter]:
    """The parameters that the optimizer moves: all, or those of the adapter."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def require_no_dropout(model: Any) -> None:
    """Raise ConfigError where the model has dropout: gradient checkpointing needs training mode, in which it would act."""
    acting = any(isinstance(layer, torch.nn.Dropout) and layer.p > 0 for layer in model.modules())
    if acting or bool(getattr(model.config, "attention_dropout", False)):
        raise ConfigError(
            "optimizer.gradient_checkpointing runs the model in training mode, where its dropout would make ratios and gradients "
            "noisy: take a model without dropout, or set attention_dropout to 0 in its config.json"
        )


def has_adapter(model: Any) -> bool:
    """Return whether an adapter is on the model."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def _require_fitting_peft() -> None:
    from transformers.integrations.peft import MIN_PEFT_VERSION
    from transformers.utils.peft_utils import check_peft_version

    try:
        check_peft_version(min_version=MIN_PEFT_VERSION)
    except ValueError as error:
        raise ConfigError(
            f"policy.lora: transformers {version('transformers')} wants peft {MIN_PEFT_VERSION} or newer, and peft "
            f"{version('peft')} is installed: the extra [lora] takes versions that fit"
        ) from error


def add_lora(model: Any, config: Lora, seed: int, revision: str | None = None) -> None:
    """Put a fresh adapter into the model, which keeps its class; from then on the adapter alone is trained, in float32.
    revision: of the model, which the adapter's files name then.

    Its output is zero until it is trained (peft's B = 0). Raises ConfigError without the extra [lora], or where no layer
    has the names that config.targets gives.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ConfigError("policy.lora needs the extra [lora]: pip install -e '.[lora]'") from error
    _require_fitting_peft()
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        task_type="CAUSAL_LM",
        revision=revision,
    )
    with torch.random.fork_rng(devices=[]):  # peft draws A from torch's global generator
        torch.manual_seed(derive(seed, "lora") % 2**63)
        try:
            model.add_adapter(settings)
        except ValueError as error:
            raise ConfigError(f"policy.lora.targets={config.targets!r} fits no layer of this model: {error}") from error
    for parameter in trained(model):
        parameter.data = parameter.data.float()


def load_adapter(folder: Path, model: Any) -> None:
    """Copy an adapter's weights into the model's own adapter. Raises ValueError, naming what differs, on other shapes."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    # transformers writes peft's prefix of a wrapped model, which this one is not
    saved = load_file(folder / "adapter_model.safetensors")
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in saved.items()}
    own = get_peft_model_state_dict(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if shapes != expected:
        name = sorted(dict(shapes.items() ^ expected.items()))[0]
        raise ValueError(
            f"{name} ({shapes.get(name, 'absent')} in the checkpoint, {expected.get(name, 'absent')} in the model)"
        )
    copy_into(own, tensors)


def copy_into(own: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors over a model's own of the same names; of a sharded one each process takes its part."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            place = own[name]
            if isinstance(place, DTensor) and not isinstance(tensor, DTensor):
                tensor = distribute_tensor(tensor.to(place.device), place.device_mesh, place.placements)
            place.copy_(tensor)


def merge_adapter(model: Any) -> None:
    """Add the adapter's product to the weights and take it out, in place; a weight in bfloat16 rounds the sum."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge(safe_merge=True)  # raises on NaN
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False


class Snapshot:
    """The trained weights of a moment, which can stand in for the model's own: the reference of the KL term, an older
    scorer. Costs one copy of what is trained, with LoRA of the adapter alone; of sharded weights a process copies its own."""

    def __init__(self, model: Any) -> None:
        self._own = trained(model)
        self.kept = [parameter.detach().clone() for parameter in self._own]

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block the model has the kept weights; afterwards its own ones again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def refresh(self) -> None:
        """Keep the current weights in place of those kept before."""
        for parameter, kept in zip(self._own, self.kept, strict=True):
            kept.copy_(parameter.detach())

    @torch.no_grad()
    def _exchange(self) -> None:
        """In place: FSDP gathers from the tensors that it knows."""
        for parameter, kept in zip(self._own, self.kept, strict=True):
            own = parameter.detach().clone()
            parameter.copy_(kept)
            kept.copy_(own)
