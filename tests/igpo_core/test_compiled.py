"""What torch compiles is kept where its user alone writes: it reads that again as code."""

from pathlib import Path
from typing import Any

import pytest
from torch._inductor.runtime.cache_dir_utils import cache_dir

from igpo_core.attention import compiled_layers
from igpo_core.errors import ConfigError


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home folder, and a temporary folder that is everybody's."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is taken back afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    return tmp_path / "home"


@pytest.mark.parametrize("chosen", [False, True])
def test_compiled_code_is_kept_in_a_folder_of_the_users_own(
    users: Path, lookup_setup: tuple[Any, Any, Any], chosen: bool
) -> None:
    """chosen: torch has chosen its own folder already, as it does when some of its modules are imported."""
    if chosen:
        assert users.parent / "tmp" in Path(cache_dir()).parents
    compiled_layers(lookup_setup[2].model)
    kept = Path(cache_dir())
    assert users in kept.parents
    assert [folder.stat().st_mode & 0o077 for folder in (kept, kept.parent)] == [0, 0]


def test_a_folder_that_others_may_write_to_is_refused(users: Path, lookup_setup: tuple[Any, Any, Any]) -> None:
    compiled_layers(lookup_setup[2].model)
    Path(cache_dir()).parent.chmod(0o777)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCHINDUCTOR_CACHE_DIR")
        with pytest.raises(ConfigError, match="others may write there"):
            compiled_layers(lookup_setup[2].model)


def test_a_folder_that_the_user_named_is_taken(
    users: Path, lookup_setup: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(users / "mine"))
    compiled_layers(lookup_setup[2].model)
    assert cache_dir() == str(users / "mine")
