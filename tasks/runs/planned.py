"""A planned run and its files.

The run's folder `<home>/runs/<run key>/` holds run.json, the run as its sweep planned it; metrics.jsonl, checkpoints/step-000010/
and, written last, result.json: its presence means that the run is finished. The key is a hash of sweep, data version,
configuration, code version and seed, so the same run asked for again is found again. A process that works on a run or a warm
start holds its lock in `<home>/locks`; another that wants the same waits, and then finds it.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from igpo_core.config import Plan, RunSpec, code_version
from igpo_core.config.reasons import reasons
from igpo_core.errors import ConfigError
from igpo_core.folders import write_json
from igpo_core.rewards.functions import FunctionGain
from tasks.runs.devices import device

if TYPE_CHECKING:
    from igpo_core.run import TrainingRun

Say = Callable[[str], None]
OnStep = Callable[[int], None]
PLAN = "run.json"


@dataclass(frozen=True)
class Run:
    """A planned run, and where its files are."""

    spec: RunSpec
    home: Path

    @property
    def folder(self) -> Path:
        """Return the run's own folder."""
        return self.home / "runs" / self.spec.run_key

    @property
    def data(self) -> Path:
        """Return the folder of its published data."""
        return self.home / "data" / self.spec.data_version

    @property
    def start(self) -> Path:
        """Return the folder of the policy that it starts from."""
        return self.home / "warm_starts" / self.spec.start

    @property
    def result_file(self) -> Path:
        """Return the file that is there when the run is finished."""
        return self.folder / "result.json"

    @property
    def finished(self) -> bool:
        """Return whether the run has its result."""
        return self.result_file.is_file()

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run; None while there is none."""
        if not self.finished:
            return None
        result: dict[str, Any] = json.loads(self.result_file.read_text())
        return result


def write_plan(plan: Plan, home: Path) -> list[Run]:
    """Write the run.json of each run of a sweep; return the runs, seed by seed."""
    runs = [Run(spec, home) for spec in plan.runs]
    for run in runs:
        write_run(run)
    return runs


def write_run(run: Run) -> None:
    """Write run.json, from which any process on any machine can train the run. A finished run keeps its own."""
    content = run.spec.model_dump(mode="json")
    path = run.folder / PLAN
    if run.finished or (path.is_file() and json.loads(path.read_text()) == content):
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    gain = getattr(run.spec.experiment.reward, "gain", None)
    if isinstance(gain, FunctionGain) and gain.in_file:  # to read: what runs is the text in run.json
        (run.folder / Path(gain.path.partition(":")[0]).name).write_text(gain.source, encoding="utf-8")
    write_json(path, content)


def told_name(home: Path, run_key: str) -> str:
    """Return "<arm> seed <seed> <cell>" of a planned run, of whatever code it was; its key where no plan can be read."""
    try:
        content = json.loads((home / "runs" / run_key / PLAN).read_text())
        return " ".join(filter(None, [content["arm"], f"seed {content['experiment']['seed']}", content["cell"]]))
    except (OSError, ValueError, KeyError, TypeError):  # whoever opens the run says what is wrong with it
        return run_key


def open_run(home: Path, run_key: str) -> Run:
    """Open a planned run by its key.

    Raises ConfigError where none was, or where this process has other code than its plan: another code computes other numbers.
    """
    path = home / "runs" / run_key / PLAN
    if not path.is_file():
        raise ConfigError(
            f"{path.parent} holds no {PLAN}: no run was planned there. Give the key of a planned run, as sweeps and the flow "
            "`train` make them, and see that this machine has the IGPO_HOME of the one that planned it"
        )
    try:
        content = json.loads(path.read_text())
        code = content["code"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}): delete it and start the sweep again, which plans it anew"
        ) from error
    if code != code_version():  # first: a plan of other code may have other settings
        raise ConfigError(
            f"igpo_core is {code_version()} here and {code} where the run was planned: install the same on all machines, "
            "and start the sweep again"
        )
    try:
        spec = RunSpec.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ConfigError(f"{path} is no plan of a run: {'; '.join(reasons(error, RunSpec))}") from error
    return Run(spec, home)


def open_training(run: Run, say: Say) -> "TrainingRun":
    """Return the run at its newest whole checkpoint, or at its start, on the device that is this process's."""
    from igpo_core.run import TrainingRun  # torch takes seconds

    place = device(run.spec.experiment, say)
    return TrainingRun(run.spec, run.folder, run.data, run.start, place=place, judgements=run.home / "judge.sqlite")


def planned_in(folder: Path) -> RunSpec | None:
    """Return the plan of the run in a folder, of whatever code it was; None where the code of now cannot read it, or where
    there is none (folders of versions before plans)."""
    path = folder / PLAN
    if not path.is_file():
        return None
    try:
        return RunSpec.model_validate_json(path.read_text())
    except ValidationError:
        return None


def planned_start(folder: Path) -> str:
    """Return the key of the warm start of the run in a folder; "" where no plan says: nothing goes on with such a run."""
    spec = planned_in(folder)
    return spec.start if spec else ""


def drop_moments(folder: Path) -> None:
    """Keep in the folder of a finished run what evaluates it: the last weights, and the best on dev. Moments and older
    checkpoints go.

    The manifest is written first: a kill on the way leaves a file too many, which the next call takes. A damaged checkpoint stays
    as it is: whoever evaluates it says so.
    """
    from igpo_core.checkpoints import MANIFEST, SHARDS, STATE, forget_files

    last, *older = [*sorted((folder / "checkpoints").glob("step-*"), reverse=True), None]
    if last is None or not (last / MANIFEST).is_file():
        return
    for other in older:
        if other is not None:
            shutil.rmtree(other)
    try:
        forget_files(last, [STATE, SHARDS])
    except (ValueError, KeyError, TypeError):  # the manifest is damaged
        return


def write_result(run: Run, result: dict[str, Any]) -> None:
    """Atomically, last: from now on the run is finished."""
    write_json(run.result_file, result)
