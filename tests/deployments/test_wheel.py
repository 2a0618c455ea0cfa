"""igpo_core as a wheel of its own: whole, installed without the laboratory, and passing its tests there."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tasks.lab.home import PROJECT

TESTS = PROJECT / "tests"
LABORATORY = ("benchmarks", "deployments", "flows", "tasks")
# test modules of the library that need the checkout, and why
OF_THE_CHECKOUT = {
    "bits": "tests benchmarks/findings.py",
    "estimates": "estimates presets, which tasks reads",
    "function_gain": "a function beside a specification is read and written down by tasks",
    "fuzz": "tests benchmarks/fuzz.py",
    "gpu_benchmark": "tests benchmarks/gpu.py",
    "models": "compares with what tasks/runs/described.py says of a model",
}
# tests in other modules that do
ALONE_OF_THE_CHECKOUT = {
    "test_hub.py::test_data_are_prepared_from_a_file_of_the_hub": "publishes data with tasks",
    "test_memory.py::test_a_run_that_ran_out_goes_on_from_its_checkpoint": "writes a run down with tasks",
    "test_template_families.py::test_the_table_in_the_docs_has_these_rows": "compares with docs/scale.md",
}


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
    """The Python of a virtual environment with the wheel. Its dependencies are those of the Python that runs this test, whose own
    .pth files, of an editable install for one, count for nothing there."""
    place = wheel.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    (packages,) = place.glob("lib/python*/site-packages")
    paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in paths))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return python


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """With nothing of the checkout on the path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run([str(python), *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def require_installed(python: Path, folder: Path) -> dict[str, str]:
    """Return what the environment imports as igpo_core, once it is the wheel's, and no laboratory can be imported."""
    code = (
        "import json, importlib.metadata as m, importlib.util as u, igpo_core, igpo_core.config as c\n"
        f"there = [name for name in {LABORATORY} if u.find_spec(name)]\n"
        "origin = json.loads(m.distribution('igpo-core').read_text('direct_url.json'))['url']\n"
        "print(json.dumps({'file': igpo_core.__file__, 'code': c.code_version(), 'there': there, 'origin': origin}))"
    )
    done = run(python, folder, "-c", code)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    (package,) = python.parents[1].glob("lib/python*/site-packages/igpo_core")
    assert found["file"] == str(package / "__init__.py") and found["origin"].endswith(".whl")
    assert found["there"] == []
    return found


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
    from igpo_core.config import code_version

    assert require_installed(installed, tmp_path)["code"] == code_version()
    code = (
        "import sys, igpo_core.run\n"
        "from igpo_core.advantages import turn_advantages\n"
        "print(turn_advantages([[0.2, 1.0], [0.0, 0.0]], ['q', 'q'])[0])\n"
        "print(sorted({'prefect', 'mlflow', 'great_expectations'} & {n.split('.')[0] for n in sys.modules}))"
    )
    found = run(installed, tmp_path, "-c", code)
    # gains .2 and 0, outcomes 1 and 0: z is 1 less rounding by eps 1e-6 in .1 and .5, then summed
    advantages, heavy = found.stdout.splitlines()
    assert advantages.startswith("[1.9999") and heavy == "[]", found.stderr


def test_the_modules_that_need_the_checkout_are_those_that_are_named() -> None:
    """Whoever imports the laboratory at the top; what a single test does is found by the night test."""
    uses = re.compile(rf"^ *(from|import) ({'|'.join(LABORATORY)})\b", re.MULTILINE)
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (TESTS / "igpo_core").glob("*.py")}
    found = {name.removeprefix("test_") for name, source in sources.items() if uses.search(without_texts(source))}
    assert found == OF_THE_CHECKOUT.keys()
    for node in ALONE_OF_THE_CHECKOUT:
        module, _, test = node.partition("::")
        assert f"def {test}(" in sources[module.removesuffix(".py")]


def without_texts(source: str) -> str:
    """A source without what stands between triple quotes: programs that a test hands to another process."""
    return re.sub(r'"""[\s\S]*?"""', "", source)


@pytest.mark.night
@pytest.mark.timeout(3600)
def test_the_librarys_tests_pass_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """In a folder outside the checkout that holds the tests alone, and the example that they test."""
    kept = shutil.ignore_patterns("__pycache__", *(f"test_{name}.py" for name in OF_THE_CHECKOUT))
    for name in ("igpo_core", "data"):
        shutil.copytree(TESTS / name, tmp_path / "tests" / name, ignore=kept)
    for path in TESTS.glob("*.py"):
        shutil.copy(path, tmp_path / "tests" / path.name)
    shutil.copytree(PROJECT / "examples", tmp_path / "examples")
    options = "--import-mode=importlib --strict-markers -n 2 --dist loadfile -p no:cacheprovider"
    settings = ["[pytest]", f"addopts = {options}", "pythonpath = .", "timeout = 900", "markers =", "  night", "  e2e"]
    (tmp_path / "pytest.ini").write_text("\n".join(settings))
    require_installed(installed, tmp_path)
    left_out = [f"--deselect=tests/igpo_core/{node}" for node in ALONE_OF_THE_CHECKOUT]
    found = run(installed, tmp_path, "-m", "pytest", "-q", "-m", "not night and not e2e", *left_out, "tests/igpo_core")
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-1000:]
    assert " passed" in found.stdout.splitlines()[-1]
