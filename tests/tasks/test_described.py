"""What is said of a model without its weights, where it comes with code."""

from pathlib import Path
from typing import Any

import pytest

from igpo_core.errors import ConfigError
from igpo_core.policies import model_behind
from tasks.runs.described import require_continuous
from tests.igpo_core.test_policies import COMMIT, trained  # noqa: F401  (a fixture)


@pytest.mark.parametrize("trained", [False, True], indirect=True, ids=["whole", "adapter"])
def test_the_engine_is_asked_about_the_named_models_code(trained: Any, tmp_path: Path) -> None:  # noqa: F811
    config, _, run = trained
    assert model_behind(run, config.policy) == (config.policy.name, COMMIT)
    for place in (str(run), config.policy.name):
        with pytest.raises(ConfigError, match=r"this model has type own, of which no packed pass"):
            require_continuous(place, config.policy, "cpu")
    assert not (tmp_path / "ran-copied").exists()
