"""Where what stands: flows in flows/, Prefect's tasks at the top of tasks/, and imports that go one way."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from flows.children import PRELOADED
from tasks.lab.home import PROJECT

ORDER = ("igpo_core", "tasks", "flows", "deployments")  # each may import itself and what stands before it
GLUE = {
    "__init__": "takes tracebacks out of the logs of all flows",
    "children": "starts flow runs below the run of a sweep",
    "command": "starts the flow ablation from a terminal",
    "parameters": "types of the flows' parameters, for Prefect's forms",
    "report": "artifacts and events of the run of a sweep",
    "sweep": "submits the tasks of a sweep's children to a task runner",
}  # modules of flows/ that define no flow, and why they are there all the same
LABORATORY = {"prefect", "mlflow", "great_expectations"}  # packages that igpo_core does without


def modules(folder: str, pattern: str = "**/*.py") -> Iterator[tuple[str, ast.Module]]:
    """Path within the project, and content, of each module of a package."""
    for path in sorted((PROJECT / folder).glob(pattern)):
        if "build" not in path.relative_to(PROJECT).parts:
            yield path.relative_to(PROJECT).as_posix(), parsed(path)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(module: ast.Module) -> set[str]:
    """The modules that it names in an import, at its top and within functions; `from a import b` may be a.b."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides from where"
            found |= {str(node.module), *(f"{node.module}.{name.name}" for name in node.names)}
    return found


@cache
def decorated(module: ast.Module, decorator: str) -> list[str]:
    """Names of the functions that have @decorator, or @decorator(...)."""
    return [
        node.name
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for one in node.decorator_list
        if ast.unparse(one.func if isinstance(one, ast.Call) else one).split(".")[-1] == decorator
    ]


def test_a_decorator_is_seen_with_and_without_arguments_and_module() -> None:
    source = "@task\ndef a(): ...\n@prefect.task(retries=1)\ndef b(): ...\n@flow\ndef c():\n  @task\n  def d(): ...\n"
    assert decorated(ast.parse(source), "task") == ["a", "b", "d"]


def test_every_module_of_flows_defines_a_flow_or_is_known_to_be_glue() -> None:
    without = {Path(name).stem for name, module in modules("flows") if not decorated(module, "flow")}
    assert without == set(GLUE)


def test_every_task_is_at_the_top_of_tasks() -> None:
    places = {name for folder in ORDER for name, module in modules(folder) if decorated(module, "task")}
    top = {name for name, _ in modules("tasks", "*.py")} - {"tasks/__init__.py"}
    assert places == top


def test_no_flow_is_elsewhere() -> None:
    assert [name for folder in ORDER if folder != "flows" for name, m in modules(folder) if decorated(m, "flow")] == []


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_one_way(package: str) -> None:
    above = set(ORDER[ORDER.index(package) + 1 :])
    wrong = {name: imported(module) for name, module in modules(package)}
    assert {name: found for name, found in wrong.items() if {one.split(".")[0] for one in found} & above} == {}


def test_the_rooms_do_not_know_the_tasks_that_stand_on_them() -> None:
    top = {name.removesuffix(".py").replace("/", ".") for name, _ in modules("tasks", "*.py")} - {"tasks.__init__"}
    assert [name for name, module in modules("tasks", "*/**/*.py") if imported(module) & top] == []


def test_the_library_does_without_the_laboratorys_packages() -> None:
    known = {
        name: {one.split(".")[0] for one in imported(module)} & LABORATORY for name, module in modules("igpo_core")
    }
    assert {name: found for name, found in known.items() if found} == {}


def test_what_children_are_forked_with_is_there() -> None:
    """The fork server passes over a module that is not, without a word."""
    own = [name for name in PRELOADED if name.split(".")[0] in ORDER]
    assert own and [name for name in own if not (PROJECT / f"{name.replace('.', '/')}.py").is_file()] == []
