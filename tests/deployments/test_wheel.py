"""igpo_core as a wheel of its own: whole, importable without the laboratory, and passing its tests."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tasks.lab.home import PROJECT

# tests that need more of the checkout than the library
OF_THE_CHECKOUT = (
    "bits",
    "estimates",
    "function_gain",
    "fuzz",
    "gpu_benchmark",
    "minimal_example",
    "models",
    "copies_of_data",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(PROJECT / "igpo_core", folder / "source", ignore=left_out)
    command = [sys.executable, "-m", "pip", "wheel", str(folder / "source"), "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(folder)], check=True, capture_output=True)
    (found,) = folder.glob("igpo_core-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    target = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(folder: Path, installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{installed}:{folder}"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_every_module_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.endswith(".py")}
    folder = PROJECT / "igpo_core"
    modules = {
        f"igpo_core/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*.py")
        if "build" not in path.relative_to(folder).parts
    }
    assert inside == modules


def test_it_is_the_same_code_as_the_checkout_and_needs_no_laboratory(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sys, igpo_core, igpo_core.run, igpo_core.config as c\n"
        "from igpo_core.advantages import turn_advantages\n"
        "print(igpo_core.__file__, c.code_version(), turn_advantages([[0.2, 1.0], [0.0, 0.0]], ['q', 'q'])[0])\n"
        "print(sorted({'prefect', 'mlflow', 'great_expectations', 'tasks', 'flows'} & {n.split('.')[0] for n in sys.modules}))"
    )
    found = run(tmp_path, installed, "-c", code)
    place, rest = found.stdout.splitlines()[0].split(" ", 1), found.stdout.splitlines()[1]
    from igpo_core.config import code_version

    assert place[0] == str(installed / "igpo_core" / "__init__.py") and rest == "[]", found.stderr
    # gains .2 and 0, outcomes 1 and 0: z is 1 less rounding by eps 1e-6 in .1 and .5, then summed
    assert place[1].startswith(f"{code_version()} [1.9999")


@pytest.mark.night
@pytest.mark.timeout(1800)
def test_the_librarys_tests_pass_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """In a folder that holds the tests alone."""
    kept = shutil.ignore_patterns("__pycache__", *(f"test_{name}.py" for name in OF_THE_CHECKOUT))
    shutil.copytree(PROJECT / "tests" / "igpo_core", tmp_path / "tests" / "igpo_core", ignore=kept)
    for name in ("conftest.py", "worlds.py", "sockets.py", "tiny_gguf.py", "data"):
        source = PROJECT / "tests" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / "tests" / name)
    shutil.copytree(PROJECT / "examples", tmp_path / "examples")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    night\n    e2e\n")
    where = "import igpo_core; print(igpo_core.__file__)"
    assert run(tmp_path, installed, "-c", where).stdout.startswith(str(installed))
    asked = ["-m", "pytest", "-q", "-m", "not night and not e2e", "-p", "no:cacheprovider", "tests/igpo_core"]
    found = run(tmp_path, installed, *asked)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
    assert "passed" in found.stdout.splitlines()[-1]
