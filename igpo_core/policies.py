"""Load or build a causal LM with its tokenizer and grammar."""

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from igpo_core.config import ExperimentConfig, NewPolicy, PretrainedPolicy
from igpo_core.config.policy import is_gguf
from igpo_core.environments.base import Environment, Interface
from igpo_core.errors import CheckpointError, ConfigError
from igpo_core.hub import require_model
from igpo_core.models import (
    UNLOADABLE,
    require_all_weights,
    require_embeddings,
    require_plain_decoder,
    require_plain_head,
    window,
    without_sdpa,
)
from igpo_core.protocol import ChatProtocol, TurnProtocol, WordProtocol
from igpo_core.seeds import derive
from igpo_core.weights import ADAPTER, add_lora, has_adapter, merge_adapter

# ChatML with tool calls: the same token layout as Qwen2.5's template (system, tools, user, assistant, tool reply as a
# user turn). The wording of the tool section is ours.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'tool' -%}"
    "{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' -}}"
    "{%- else -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content -}}"
    "{%- if message.role == 'system' and tools -%}"
    "{{- '\\n\\nTools (call one with a JSON object between <tool_call> and </tool_call>):\\n' -}}"
    "{%- for tool in tools -%}{{- tool | tojson -}}{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
# of a model's config.json: where it came from and how it was kept, not what it computes
DESCRIBES = (
    "auto_map",
    "_name_or_path",
    "name_or_path",
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
)
CHAT_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_ADDED = ("<tool_call>", "</tool_call>")  # added, but not special, as in Qwen2.5


@dataclass(frozen=True)
class Policy:
    """A causal LM and how it writes turns. window: the longest sequence it takes, in tokens. half: whether it computes in
    bfloat16. other_ends: tokens that its generation_config or its tokenizer ends at and the protocol does not stop at; Qwen2.5
    ends at <|im_end|>, which stops a turn, and at <|endoftext|>."""

    model: Any
    protocol: TurnProtocol
    window: int
    half: bool = False
    other_ends: tuple[int, ...] = ()

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a turn: the protocol's stop tokens, then other_ends, with which a turn is malformed."""
        return (*self.protocol.stop_ids, *self.other_ends)

    def precision(self) -> AbstractContextManager[Any]:
        """What every forward pass runs within: bfloat16 where the policy computes in it, else nothing."""
        if not self.half:
            return nullcontext()
        import torch

        return torch.autocast(self.model.device.type, torch.bfloat16)


def build_policy(config: ExperimentConfig, environment: Environment) -> Policy:
    """The policy of `config` before any training; a new tokenizer covers the environment's words or learns its texts.

    A new model's weights depend on config.seed alone. Raises CheckpointError where a pretrained model can't be loaded or lacks
    weights, ConfigError where its window is too short.
    """
    if isinstance(config.policy, PretrainedPolicy):
        return load_policy(config.policy.source, config)
    if config.policy.tokenizer == "words":
        tokenizer = word_tokenizer(environment.vocabulary())
    else:
        tokenizer = chat_tokenizer(environment.texts(), config.policy)
    model = new_model(config.policy, len(tokenizer), tokenizer, config.seed)
    return make_policy(model, tokenizer, config.data.interface)


def load_policy(name: str | Path, config: ExperimentConfig) -> Policy:
    """A policy from a folder or hub name: safetensors only, no remote code unless config.policy asks for it, and then of the
    model that it names alone. A folder with an adapter is loaded with the model that it belongs to, at the revision that it was
    trained on; config.policy.lora adds a fresh one where there is none. What was trained of a model with code gets the code of
    that model at its commit; the copy that lies in the folder does not run."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if is_gguf(str(name)):
        raise ConfigError(
            f"{name}: a GGUF file is converted first (igpo_core.gguf.convert); give the folder that it became"
        )
    settings = config.policy if isinstance(config.policy, PretrainedPolicy) else PretrainedPolicy(name=str(name))
    if settings.trust_remote_code and _needs_code(Path(name), settings):
        return _trained_of(Path(name), settings, config)
    half = settings.half
    # what is trained is float32: an update of 1e-6 is lost in bfloat16's eight bits
    dtype = torch.bfloat16 if half and settings.lora else torch.float32
    where = {"revision": _revision(name, settings), **remote_code(name, settings)}
    require_model(str(name), where["revision"])
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), **where)
        read: Any = AutoModelForCausalLM.from_pretrained(
            str(name),
            dtype=dtype,
            use_safetensors=True,
            **where,
            attn_implementation="sdpa",  # takes the boolean masks of rollout and scoring
            output_loading_info=True,
        )
    except (OSError, *UNLOADABLE, SafetensorError) as error:
        if without_sdpa(error):
            raise ConfigError(f"cannot train {name}: {without_sdpa(error)}") from error
        raise CheckpointError(
            f"cannot load a policy from {name}: {error}\nGive a folder or hub name with config.json, tokenizer.json and "
            "*.safetensors."
            + (
                f" Code that comes with a model runs for policy.name={settings.name} alone."
                if settings.trust_remote_code and not same_files(name, settings.name)
                else ""
            )
        ) from error
    model, loaded = read
    require_all_weights(loaded["missing_keys"], name)
    require_window(model.config, config, name)
    require_plain_head(model)
    require_plain_decoder(model)
    if settings.lora and not has_adapter(model):
        add_lora(model, settings.lora, config.seed, settings.revision)
    align(model)
    # of others, and of what was trained here, the tokenizer itself says
    thinking = settings.thinking if same_files(name, settings.source) else None
    return make_policy(model, tokenizer, config.data.interface, half, thinking)


def same_files(one: str | Path, other: str | Path) -> bool:
    """Return whether two names mean the same model: the same hub name, or the same folder, however its path is spelled."""
    if Path(one).is_dir() and Path(other).is_dir():
        return Path(one).resolve() == Path(other).resolve()
    return str(one) == str(other)


def _needs_code(folder: Path, settings: PretrainedPolicy) -> bool:
    """Whether a folder other than the policy's own asks for code: a model's config.json, or the model of an adapter."""
    if same_files(folder, settings.name):
        return False
    if (folder / ADAPTER).is_file():
        return same_files(json.loads((folder / ADAPTER).read_text())["base_model_name_or_path"], settings.name)
    file = folder / "config.json"
    return file.is_file() and "auto_map" in json.loads(file.read_text())


def model_behind(name: str | Path, settings: PretrainedPolicy) -> tuple[str, str | None]:
    """Return the name and the commit of the model whose configuration and code load_policy takes for a folder or hub name: of an
    adapter the one that it belongs to, of what was trained of a model with code that one."""
    if settings.trust_remote_code and _needs_code(Path(name), settings):
        return settings.name, settings.revision
    adapter = Path(name) / ADAPTER
    behind = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else str(name)
    return behind, _revision(name, settings)


def _trained_of(folder: Path, settings: PretrainedPolicy, config: ExperimentConfig) -> Policy:
    """The policy that config.policy names, with the weights and the tokenizer of a folder, as a run has it that goes on from
    there: the prompts are those that it was trained with, whatever config.policy.thinking says.

    Raises CheckpointError where the folder is of another model, or of other settings, or has no tokenizer of its own.
    """
    from igpo_core.checkpoints import load_weights

    own_settings = settings.model_copy(update={"thinking": None})
    policy = load_policy(settings.name, config.model_copy(update={"policy": own_settings}))
    if (folder / ADAPTER).is_file():
        saved = json.loads((folder / ADAPTER).read_text())
        lora = settings.lora
        wanted = {"revision": settings.revision, "r": lora and lora.rank, "lora_alpha": lora and lora.alpha}
        differing = [f"{key}={saved[key]!r}, not {value!r}" for key, value in wanted.items() if saved[key] != value]
    else:
        own = policy.model.config
        found = (
            type(own).from_pretrained(str(folder)).to_dict()
        )  # of the named model's class: nothing of the folder runs
        differing = [
            f"{key}={found.get(key)!r}, not {value!r}"
            for key, value in own.to_dict().items()
            if key not in DESCRIBES and found.get(key) != value
        ]
    if differing:
        raise CheckpointError(
            f"{folder} was not made of policy.name={settings.name} as this preset has it: {'; '.join(differing)}. Code "
            "that comes with a model runs for policy.name alone: give the preset that the run was trained with"
        )
    tokenizer = _tokenizer_of(folder, policy.protocol.tokenizer)
    load_weights(folder, policy.model)
    return make_policy(policy.model, tokenizer, config.data.interface, policy.half)


def _tokenizer_of(folder: Path, named: Any) -> Any:
    """The tokenizer of a folder, read by the class of the named model's: nothing of the folder runs."""
    files = sorted(set(type(named).vocab_files_names.values()))
    try:
        if not any((folder / file).is_file() for file in files):  # some classes would make an empty one
            raise FileNotFoundError(f"there is no {' and no '.join(files)}")
        return type(named).from_pretrained(str(folder))
    except (OSError, *UNLOADABLE) as error:
        raise CheckpointError(
            f"{folder} has no tokenizer that {type(named).__name__} reads ({error}), which says the prompts that it was trained "
            "with: copy the run's checkpoint or export whole, with the tokenizer's files"
        ) from error


def remote_code(name: str | Path, settings: PretrainedPolicy) -> dict[str, Any]:
    """Return how transformers treats code that comes with a model: it runs that of settings.name at the pinned commit.

    A model's files may name code of another repository, which transformers would take at its newest: the commit is not there,
    so that such a model is refused.
    """
    if not settings.trust_remote_code or not same_files(name, settings.name):
        return {"trust_remote_code": False}
    return {"trust_remote_code": True, "code_revision": settings.revision}


def align(model: Any) -> None:
    """Move the model's weights to memory of their own, where torch aligns them.

    transformers leaves them as views into the file, at addresses that depend on the length of its header, and a CPU's kernels
    round otherwise there. So a loaded policy gives the bits of a built one that has the same weights.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def _revision(name: str | Path, settings: PretrainedPolicy) -> str | None:
    """The commit that is loaded: what an adapter says of its model (transformers reads its name alone, and would take the
    newest), or what is pinned of the policy's own."""
    adapter = Path(name) / ADAPTER
    if adapter.is_file():
        recorded: str | None = json.loads(adapter.read_text())["revision"]
        return recorded
    return settings.revision if same_files(name, settings.name) else None


def save_policy(policy: Policy, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Weights as safetensors, config and tokenizer: loads with AutoModelForCausalLM.from_pretrained(folder). Of a policy
    with an adapter the adapter alone, which names its model (export_policy merges them). weights: of a sharded model
    (igpo_core.sharding.full_state)."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar a checkpoint is no news
    policy.model.save_pretrained(folder, safe_serialization=True, state_dict=weights)
    policy.protocol.tokenizer.save_pretrained(folder)


def export_policy(policy: Policy, folder: Path) -> None:
    """The whole model, an adapter merged into its weights: loads with AutoModelForCausalLM.from_pretrained and in vLLM."""
    import copy

    if has_adapter(policy.model):
        merged = copy.deepcopy(policy.model)
        merge_adapter(merged)
        policy = replace(policy, model=merged)
    save_policy(policy, folder)


def make_policy(
    model: Any, tokenizer: Any, interface: Interface, half: bool = False, thinking: bool | None = None
) -> Policy:
    """Return a model with the protocol that its tokenizer writes. thinking: switched on or off in its chat template; None: left
    as it is. Raises ConfigError where it has no embedding for a token of it."""
    model.eval()  # dropout would make beliefs and ratios noisy; training goes through the same eval-mode forward
    protocol = protocol_for(tokenizer, interface, thinking)
    require_embeddings(model, protocol)
    known: int | list[int] | None = model.generation_config.eos_token_id
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    if tokenizer.eos_token_id is not None:  # a template may end a turn with another one (Gemma)
        ends.append(tokenizer.eos_token_id)
    others = tuple(token for token in dict.fromkeys(ends) if token not in protocol.stop_ids)
    return Policy(model, protocol, window(model.config), half, others)


def protocol_for(tokenizer: Any, interface: Interface, thinking: bool | None = None) -> TurnProtocol:
    """Return how a policy with this tokenizer writes turns. thinking: as in make_policy. Raises ConfigError for a tokenizer that
    writes none that is known here, or whose template cannot switch thinking."""
    has_words = "<bos>" in tokenizer.get_vocab() and tokenizer.chat_template is None
    if has_words and thinking is not None:
        raise ConfigError(
            f"policy.thinking={str(thinking).lower()}: this model has no chat template that could switch it: leave it out"
        )
    return WordProtocol(tokenizer, interface) if has_words else ChatProtocol(tokenizer, interface, thinking)


def require_window(model_config: Any, config: ExperimentConfig, name: str | Path) -> None:
    """Raise ConfigError where trajectories may be longer than the model takes."""
    longest = window(model_config)
    if config.rollout.max_tokens > longest:
        raise ConfigError(
            f"rollout.max_tokens={config.rollout.max_tokens} exceeds the {longest} tokens that {name} takes: lower it"
        )


def word_tokenizer(words: Sequence[str]) -> Any:
    """One token a word, split at white space; control words first, so that their ids never move."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*WordProtocol.CONTROL, *words]
    if len(set(vocabulary)) != len(vocabulary):
        raise ConfigError("the vocabulary repeats a word, or has a control word")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )


def chat_tokenizer(texts: Iterable[str], config: NewPolicy) -> Any:
    """A byte-level BPE trained on `texts`, with Qwen2.5's control tokens and a ChatML template with tool calls."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary - len(CHAT_SPECIAL) - len(CHAT_ADDED),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CHAT_SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in CHAT_ADDED])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def new_model(config: NewPolicy, vocabulary: int, tokenizer: Any, seed: int) -> Any:
    """A random Llama- or Qwen2-shaped model in float32."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    kind = LlamaConfig if config.architecture == "llama" else Qwen2Config
    settings = kind(
        vocab_size=vocabulary,
        hidden_size=config.width,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        max_position_embeddings=config.window,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # transformers draws initial weights from torch's global generator; fork it so that nothing else is disturbed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights") % 2**63)
        return AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa")
