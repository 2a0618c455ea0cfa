"""The library with the oldest and the newest torch and transformers that its bounds admit, each in an environment of its own."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tasks.lab.home import PROJECT

BOUNDED = ("torch", "transformers", "huggingface-hub")
# what a training run goes through, from templates to checkpoints, within minutes
SELECTION = (
    "batching", "cache", "continuous", "gguf", "information_gain", "logprobs", "lora", "policies", "ranks", "rollout",
    "served", "shards", "templates", "training", "unpacking", "warmstart",
)  # fmt: skip
TOOLS = ("pytest>=9,<10", "pytest-timeout>=2.4,<3", "hypothesis>=6.140,<7", "psutil>=7,<8")


def bounds(file: str) -> dict[str, Requirement]:
    content = tomllib.loads((PROJECT / file).read_text())
    every = [Requirement(text) for text in content["project"]["dependencies"]]
    return {requirement.name: requirement for requirement in every if requirement.name in BOUNDED}


def oldest(requirement: Requirement) -> str:
    (low,) = (part.version for part in requirement.specifier if part.operator == ">=")
    return f"{requirement.name}=={low}.*"


def test_the_library_and_the_laboratory_have_the_same_bounds() -> None:
    assert bounds("pyproject.toml") == bounds("igpo_core/pyproject.toml")
    assert {oldest(requirement) for requirement in bounds("pyproject.toml").values()} == {
        "torch==2.11.*", "transformers==5.17.*", "huggingface-hub==1.5.*",
    }  # fmt: skip


@pytest.mark.night
@pytest.mark.timeout(900)
def test_vllm_can_share_the_librarys_environment(tmp_path: Path) -> None:
    """pip finds versions that vLLM and the library both take; nothing is installed. Needs a package index."""
    asked = tomllib.loads((PROJECT / "igpo_core" / "pyproject.toml").read_text())["project"]["dependencies"]
    report = tmp_path / "report.json"
    look = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", report]
    subprocess.run([*look, "vllm>=0.33", *asked], check=True)
    every = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    found = {canonicalize_name(entry["name"]): entry["version"] for entry in every}
    print({name: found[name] for name in ("vllm", *BOUNDED)})
    assert Version(found["vllm"]) >= Version("0.33")


@pytest.mark.night
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("end", ["oldest", "newest"])
def test_the_library_works_at_each_end_of_its_bounds(tmp_path: Path, end: str) -> None:
    """Needs a package index, and 7 GB where that has torch with CUDA alone; TORCH_INDEX names another one, as make has it. The
    newest transformers takes no peft that is out, so adapters are tried at the oldest end alone (the extra [lora])."""
    left_out = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(PROJECT / "igpo_core", tmp_path / "source", ignore=left_out)
    asked = [oldest(one) if end == "oldest" else str(one) for one in bounds("igpo_core/pyproject.toml").values()]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    index = os.environ.get("TORCH_INDEX")
    if index:
        (torch,) = (text for text in asked if text.startswith("torch"))
        subprocess.run([*install, "--index-url", index, torch], check=True)
    extras = "gguf,lora" if end == "oldest" else "gguf"
    subprocess.run([*install, f"{tmp_path / 'source'}[{extras}]", *asked, *TOOLS], check=True)
    for name in ("igpo_core", "data"):
        shutil.copytree(PROJECT / "tests" / name, tmp_path / "tests" / name, ignore=left_out)
    for name in ("conftest.py", "worlds.py", "sockets.py", "tiny_gguf.py"):
        shutil.copy(PROJECT / "tests" / name, tmp_path / "tests")
    shutil.copytree(PROJECT / "examples", tmp_path / "examples")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    night\n    e2e\n")
    files = [f"tests/igpo_core/test_{name}.py" for name in SELECTION]
    chosen = ["-m", "not night and not e2e", *([] if end == "oldest" else ["-k", "not lora and not adapter"])]
    found = subprocess.run(
        [python, "-m", "pytest", "-q", *chosen, "-p", "no:cacheprovider", *files],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-1000:]
    assert "passed" in found.stdout.splitlines()[-1]
