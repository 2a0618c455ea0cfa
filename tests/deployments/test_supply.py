"""What is installed, and what containers may do: read from the files, for no container engine is at hand."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
COMPOSE = ROOT / "deployments" / "compose"
POOLS = sorted((ROOT / "deployments" / "pools").glob("*.json"))
ONLY_TORCH = re.compile(r"torch|triton|nvidia-(?!ml-py$).*|cuda-.*")


def locked() -> list[tuple[Requirement, list[str]]]:
    """Each package of the lock with its hashes."""
    assert LOCK.is_file(), "no lock: what is installed is whatever an index has today"
    lines = [line for line in LOCK.read_text().replace("\\\n", " ").splitlines() if not line.startswith("#")]
    found = []
    for line in filter(None, lines):
        requirement, *hashes = line.split("--hash=")
        found.append((Requirement(requirement.strip()), [entry.strip() for entry in hashes]))
    return found


# ------------------------------------------------------------------------------------------------ the lock


def test_every_package_is_pinned_with_hashes_but_what_torch_needs() -> None:
    packages = locked()
    assert len(packages) > 150
    for requirement, hashes in packages:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", entry) for entry in hashes), requirement
        assert requirement.url is None and not ONLY_TORCH.fullmatch(canonicalize_name(requirement.name)), requirement


def test_the_lock_names_no_index() -> None:
    assert LOCK.is_file(), "no lock"
    assert not re.search(r"--(extra-)?index-url|--find-links|://", LOCK.read_text())


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_the_lock_has_what_the_project_asks_for_within_its_bounds(python: str, system: str) -> None:
    place = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": system}
    here = {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement, _ in locked()
        if requirement.marker is None or requirement.marker.evaluate(place)
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in project["project"]["optional-dependencies"].values():
        asked += extra
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name not in ("torch", "igpo-lab"):
            assert requirement.specifier.contains(here[name]), f"{requirement}: the lock has {here.get(name)}"


@pytest.mark.parametrize("name, version", [("sentence-transformers", "5.2.0"), ("jinja2", "3.1.5")])
def test_no_version_is_allowed_in_which_the_files_of_a_model_run_code(name: str, version: str) -> None:
    """Without the lock: sentence-transformers 5 imports what modules.json names, jinja2 3.1.5 has CVE-2025-27516."""
    asked = []
    for file in (ROOT / "pyproject.toml", ROOT / "igpo_core" / "pyproject.toml"):
        project = tomllib.loads(file.read_text())["project"]
        every = [
            *project["dependencies"],
            *(one for extra in project["optional-dependencies"].values() for one in extra),
        ]
        asked += [one for one in map(Requirement, every) if canonicalize_name(one.name) == name]
    assert asked and not any(one.specifier.contains(version) for one in asked)


def test_an_index_is_asked_for_torch_alone_and_after_all_others() -> None:
    """With an extra index the best version of either wins, for every package."""
    makefile, dockerfile = (ROOT / "Makefile").read_text(), (COMPOSE / "Dockerfile").read_text()
    torch = re.search(r"^TORCH\s*:= (torch==\S+)$", makefile, re.MULTILINE)
    assert "--extra-index-url" not in makefile + dockerfile
    assert torch and torch[1] in dockerfile and f"pip install {torch[1]} " in (ROOT / "docs/operate.md").read_text()
    asks = re.compile(r"\$\(PIP\)|\$\(UV\)|pip install")
    for text in (makefile, dockerfile):
        lines = text.replace("\\\n\t", " ").splitlines()  # a variable over two lines is one
        *locked, with_index, own = [line for line in lines if asks.search(line) and ":=" not in line]
        assert "-r requirements.lock" in locked[-1]
        assert all("--no-deps --require-hashes -r " in line for line in locked)
        assert ("--index-url" in with_index) and ("torch==" in with_index or "$(TORCH)" in with_index)
        assert "--no-deps --no-build-isolation -e ." in own


def test_what_installs_the_lock_is_taken_from_the_lock_with_its_hashes() -> None:
    (line,) = re.findall(r"^\t@(sed .*) > \$\(VENV\)/uv.lock$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    taken = subprocess.run(line.replace("$$", "$"), shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    (whole,) = [block for block in re.split(r"\n(?=\S)", LOCK.read_text()) if block.startswith("uv==")]
    assert taken.stdout.strip() == whole.strip()


@pytest.mark.parametrize(
    ("settings", "index"),
    [
        ("", "https://pypi.org/simple"),
        ("[global]\nindex-url = http://global/simple\n", "http://global/simple"),
        ("[global]\nindex-url = http://global/simple\n[install]\nindex-url = http://own/simple\n", "http://own/simple"),
    ],
)
def test_uv_looks_where_pip_does(tmp_path: Path, settings: str, index: str) -> None:
    file = tmp_path / "pip.conf" if settings else os.devnull  # which keeps pip from this machine's own
    Path(file).write_text(settings)
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    asked = ["make", "-s", "--eval=index:;@$(INDEX)", "index", f"BIN={Path(sys.executable).parent}"]
    told = subprocess.run(
        asked, cwd=ROOT, env={**variables, "PIP_CONFIG_FILE": str(file), "HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == index


@pytest.mark.night
@pytest.mark.timeout(900)
def test_an_empty_environment_is_installed_from_the_lock(tmp_path: Path) -> None:
    """As a user does it: make environment in a copy of the project. Needs a package index and 3 GB."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("igpo_core", "tasks", "flows", "deployments"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["make", "environment", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    python = copy / ".venv" / "bin" / "python"
    checked = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    program = (
        "import deployments, mlflow, peft, prefect, torch; print(torch.__version__.split('+')[0], deployments.__file__)"
    )
    told = subprocess.run(
        [python, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    torch = re.search(r"^TORCH\s*:= torch==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert torch and told == [torch[1], str(copy / "deployments" / "__init__.py")]


# ------------------------------------------------------------------------------------------------ containers


def test_the_image_runs_without_root() -> None:
    lines = (COMPOSE / "Dockerfile").read_text().splitlines()
    users = [index for index, line in enumerate(lines) if line.startswith("USER ")]
    assert users and lines[users[-1]] == "USER 1000:1000"
    assert not any(line.startswith(("RUN", "USER")) for line in lines[users[-1] + 1 :])


def test_no_container_gains_privileges_and_ports_are_of_this_machine() -> None:
    services: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    assert set(services) == {"postgres", "prefect", "mlflow", "register", "sweeps", "arms"}
    for name, service in services.items():
        assert service.get("security_opt") == ["no-new-privileges:true"], name
        assert service.get("cap_drop") == ["ALL"], name
        assert "cap_add" not in service or name == "postgres"
        assert "privileged" not in service and "user" not in service
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_the_workers_get_no_secret_of_the_servers() -> None:
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    for name in ("register", "sweeps", "arms"):
        told = set(services[name]["environment"])
        assert not {"PGPASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"} & told, name


def test_a_pod_runs_without_root_and_without_the_clusters_account() -> None:
    template = json.loads((ROOT / "deployments" / "pools" / "kubernetes.json").read_text())
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod.get("automountServiceAccountToken") is False
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert set(container["resources"]["limits"]) == {"cpu", "memory", "nvidia.com/gpu"}
    (source,) = container[
        "envFrom"
    ]  # secrets come from a secret of the cluster, not from `env`, which Prefect stores in clear
    assert source["secretRef"]["name"] == "{{ secret }}"
    assert "secret" in template["variables"]["properties"]


def test_a_docker_arm_gains_no_privileges() -> None:
    template = json.loads((ROOT / "deployments" / "pools" / "docker.json").read_text())
    settings = template["job_configuration"]["container_create_kwargs"]
    assert settings["cap_drop"] == ["ALL"] and settings["security_opt"] == ["no-new-privileges"]


@pytest.mark.parametrize("path", POOLS, ids=lambda path: path.stem)
def test_a_flow_run_chooses_no_command_and_no_folder(path: Path) -> None:
    """Every placeholder of a template is declared, and none of them is what a shell would run."""
    template = json.loads(path.read_text())
    declared = set(template["variables"]["properties"])
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == declared
    assert not {"command", "working_dir", "args", "entrypoint"} & declared


# ------------------------------------------------------------------------------------------------ docs/security.md


def test_every_test_that_closes_a_finding_is_there() -> None:
    """In the table's last column: a file, then names in it; .. stands for the rest of a name."""
    rows = [line for line in (ROOT / "docs" / "security.md").read_text().splitlines() if line.startswith("|")]
    found = 0
    for row in rows:
        text = ""
        for name in re.findall(r"`([^`]+)`", row.split("|")[-2]):
            if name.startswith("tests/"):
                text, found = (ROOT / name).read_text(), found + 1
            elif re.match(r"test_|\.\.", name):
                pattern = re.escape(name).replace(r"\.\.", r"\w*")
                assert re.search(rf"^def {pattern}\(", text, re.MULTILINE), f"{name} in {row}"
    assert found > 20
