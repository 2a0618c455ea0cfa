"""A model that is written here as GGUF, in llama.cpp's layout, is read back to the number; what is read wrongly is refused."""

import copy
import io
import json
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from igpo_core.checkpoints import verify_folder
from igpo_core.config import ExperimentConfig, PretrainedPolicy
from igpo_core.errors import CheckpointError, ConfigError
from igpo_core.gguf import KNOWN_TEXT, TRANSFORMERS, convert, in_package, read_source, split_package
from igpo_core.policies import load_policy
from tests.tiny_gguf import known, learn, write

OLD = tuple(int(part) for part in version("transformers").split(".")[:2]) < TRANSFORMERS
converts = pytest.mark.skipif(OLD, reason="this transformers converts tokenizers wrongly, and is refused")


def test_an_older_transformers_is_refused_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not OLD:
        monkeypatch.setattr("igpo_core.gguf.version", lambda package: "5.22.2")
    with pytest.raises(
        ConfigError, match=r"transformers 5\.\d+\.\d+ converts .*convert in an environment with 5\.23 or newer"
    ):
        convert(write(tmp_path / "tiny.gguf", known()), tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


@converts
def test_every_number_and_token_comes_back(tmp_path: Path) -> None:
    model, tokenizer = known()
    made = convert(write(tmp_path / "tiny.gguf", known()), tmp_path / "tiny")
    verify_folder(tmp_path / "tiny")
    assert made == read_source(tmp_path / "tiny")
    assert (made.name, made.licence, made.weights) == ("Tiny", "cc0-1.0", {"F32": 21})  # 2 x 9, embeddings, norm, head
    assert made.parameters == sum(weight.numel() for weight in model.parameters()) and made.nats < 0.5
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", use_safetensors=True)
    for name, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], value.bfloat16()), name
    again = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    text = f"{KNOWN_TEXT}\n  Łódź 1984 <|im_end|><|im_start|>user"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"] and again.eos_token == "<|im_end|>"
    config = ExperimentConfig.model_validate({"rollout": {"max_tokens": 600}, "policy": {"kind": "new", "window": 600}})
    assert load_policy(tmp_path / "tiny", config).window == 1024
    with pytest.raises(ConfigError, match="converted first"):
        load_policy(tmp_path / "tiny.gguf", config)


@converts
def test_a_file_without_a_head_is_tied(tmp_path: Path) -> None:
    model, tokenizer = known()
    one = copy.deepcopy(model)
    one.config.tie_word_embeddings = True
    one.tie_weights()
    learn(one, tokenizer)
    made = convert(write(tmp_path / "tied.gguf", (one, tokenizer), tied=True), tmp_path / "tied")
    head = model.config.vocab_size * model.config.hidden_size
    assert made.parameters == sum(weight.numel() for weight in model.parameters()) - head


EVIL = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedTokenizerFast
Path({ran!r}).touch()
class Config(PretrainedConfig):
    model_type = "evil"
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@converts
def test_code_beside_a_file_never_runs_whoever_says_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on standard input whether to run what the settings beside a file name."""
    file = write(tmp_path / "tiny.gguf", known())
    ran, asked = tmp_path / "ran", io.StringIO("y\n" * 20)
    (tmp_path / "evil.py").write_text(EVIL.format(ran=str(ran)))
    settings = {"AutoTokenizer": [None, "evil.Tokenizer"], "AutoConfig": "evil.Config"}
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text(json.dumps({"auto_map": settings, "model_type": "llama"}))
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "tiny.gguf").write_bytes(b"another one of this name")
    monkeypatch.chdir(tmp_path / "started")
    monkeypatch.setattr(sys, "stdin", asked)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    try:
        made = convert(file, tmp_path / "tiny").name
    except CheckpointError as error:
        made = str(error)
    assert not ran.exists() and asked.tell() == 0
    assert made == "Tiny"


def _rotated(tensors: dict[str, np.ndarray]) -> None:
    tensors["token_embd.weight"] = np.roll(tensors["token_embd.weight"], 1, axis=0)


@converts
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            {"eos": "<|im_start|>"},
            "ends a turn with '<|im_end|>' and writes '<|im_start|>' before one, .* reads its tokenizer wrongly",
        ),
        ({"template": False}, "has no chat template"),
        ({"change": _rotated}, "nats a token, at most 2.0 expected"),
    ],
)
def test_what_is_read_wrongly_is_refused_and_leaves_nothing(given: dict[str, Any], reason: str, tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf", known(), **given)
    with pytest.raises(CheckpointError, match=reason.replace("|", r"\|")):
        convert(file, tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


@converts
def test_a_file_that_is_none_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "odd.gguf").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"odd\.gguf cannot be read as a model"):
        convert(tmp_path / "odd.gguf", tmp_path / "odd")


def test_a_package_is_looked_up_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carries_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('needs a C++ build')")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert in_package("package:carries_a_model/tiny.gguf") == package / "tiny.gguf"
    assert "carries_a_model" not in sys.modules
    assert in_package("package:carries_a_model/other.gguf") is None
    assert in_package("package:no_such_package_here/tiny.gguf") is None
    for name in ("package:tiny.gguf", "package:a-b/tiny.gguf", "package:a/../tiny.gguf", "package:a//etc/tiny.gguf"):
        with pytest.raises(ConfigError, match="package:<module>/<file>"):
            split_package(name)


def test_a_module_that_came_from_no_package_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (
        "__main__",
        "made_by_hand",
    ):  # python -m gives __main__ a specification, python file.py gives it none
        made = types.ModuleType(module)
        assert made.__spec__ is None
        monkeypatch.setitem(sys.modules, module, made)
        try:
            said = str(in_package(f"package:{module}/x.gguf"))
        except ValueError as error:
            said = f"{type(error).__name__}: {error}"
        except ConfigError as error:
            said = str(error)
        assert said.startswith(f"policy.name=package:{module}/x.gguf: ") and said.endswith("that carries the file")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"revision": "f" * 40}, "it is the file's SHA-256"),
        ({"trust_remote_code": True}, "holds no code"),
        ({"name": "owner/model", "converted": "/x"}, "belongs to a GGUF file"),
    ],
)
def test_settings_that_a_gguf_file_does_not_have(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PretrainedPolicy.model_validate({"name": "a.gguf", **changes})


def test_where_it_was_converted_makes_no_other_run() -> None:
    one = PretrainedPolicy(name="a.gguf", revision="0" * 64)
    other = one.model_copy(update={"converted": Path("/elsewhere/a")})
    assert one.identity() == other.identity() and other.source == "/elsewhere/a" and one.source == "a.gguf"
