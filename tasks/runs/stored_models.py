"""Models that the evaluate flow is given by name: runs, checkpoints, folders, hub names, GGUF files."""

import re
from pathlib import Path

from igpo_core.checkpoints import MANIFEST, verify_folder
from igpo_core.config import PretrainedPolicy
from igpo_core.config.policy import is_gguf
from igpo_core.environments.base import Environment
from igpo_core.errors import CheckpointError
from igpo_core.policies import Policy
from tasks.runs.models import ready

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/model


def locate(model: str, home: Path) -> str:
    """The folder behind a run key, a run's folder, a checkpoint (verified) or a GGUF file (converted where it is not yet); a hub
    name is passed on as it is.

    Raises CheckpointError when there is no such run or folder, and when the newest checkpoint of a run is damaged: no
    older one is evaluated in its place.
    """
    if is_gguf(model):
        policy = ready(PretrainedPolicy(name=model), home, print)
        assert isinstance(policy, PretrainedPolicy)
        return policy.source
    run = home / "runs" / model
    folder = run if run.is_dir() else Path(model)
    if not folder.exists() and not HUB_NAME.fullmatch(model):
        raise CheckpointError(
            f"no run {model} in {home / 'runs'}, and no folder of this name: give a run key (tag run_key in MLflow), the "
            "path of a checkpoint or model folder, or a hub name as owner/model"
        )
    if (folder / "checkpoints").is_dir():
        folder = max((folder / "checkpoints").glob("step-*"), default=folder)
    if (folder / MANIFEST).is_file():
        verify_folder(folder)
    return str(folder) if folder.exists() else model


def require_vocabulary(policy: Policy, environment: Environment, name: str) -> None:
    """Raise CheckpointError when a word-level policy lacks words of the world: it would read <unk> and score nothing."""
    if "vocabulary" not in environment.settings.offers:
        return
    lacking = sorted(set(environment.vocabulary()) - set(policy.protocol.tokenizer.get_vocab()))
    if lacking:
        raise CheckpointError(
            f"{name} lacks {len(lacking)} words of this world ({', '.join(lacking[:5])}, ..): it was made for another one. "
            "Give the preset that it was trained with"
        )
