"""Do two checkouts compute the same? Every metric, checkpoint tensor and trajectory of five small studies, to the bit.

    python -m benchmarks.bits OLD_CHECKOUT NEW_CHECKOUT [--only lookup atlas files ranks killed]

Both sides run at the same time, each with servers and an IGPO_HOME of its own, with this process's Python: what differs is
their code alone. A side is driven and read by what outlives a change of the code's layout:

    make ablation, make down        with BIN, IGPO_HOME, MLFLOW_PORT and PREFECT_PORT given
    MLflow's database               runs by their tags, metrics, spans of test trajectories
    MLflow's artifacts of a run     *.jsonl (training trajectories), *.safetensors (the last checkpoint)
    IGPO_HOME/runs/<run_key>/       *.safetensors of other checkpoints, in folders called step-<number>

Times and system/ are left out. Differences that are meant stand in MEANT with their reason. Exit status 1: there are others.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.findings import BrokenStudy, Meant, compare, read_study, renamed, step_of

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 6  # differences of a study that are printed
KEPT = "a finished run keeps its last and its best checkpoint alone"
MEANT: tuple[Meant, ...] = (
    Meant("*", "*paper_f1*", "the authors' F1 is measured beside the sources' own"),
    Meant("*", "* test *.name", "the span of a turn is named with its gain"),
    Meant("lookup", "train * step 2 model.safetensors *", KEPT, "only in the old one"),
    Meant("killed", "train * step 7 model.safetensors *", KEPT, "only in the old one"),
    Meant("atlas", "*first_exposure*", "atlas shows its answer to the arm, which was the outcome alone"),
)
# of names on the old side -> on the new one, where old checkouts have other words for the same number
RENAMED: tuple[tuple[str, str], ...] = (
    (r"/searches at step ", "/tool_calls at step "),
    (r"/repeated_queries at step ", "/repeated_calls at step "),
    (r"/failed_searches at step ", "/failed_calls at step "),
    (r" reward/gain_(hop_\d+|miss) at step ", r" reward/gain_at_\1 at step "),
    (r"^(report\b.*)/f1 at step ", r"\1/score at step "),
    (r"^(report\b.*)/(best|greedy)_f1 at step ", r"\1/\2 at step "),
    (r"^(f1|em)$", r"scores.\1"),
    (r"\.query_or_answer$", ".content"),
    (r"^(\d+)\.belief_(before|after)$", r"\1.belief_\2_nats"),
    (r"^(\d+)\.information_gain$", r"\1.gain"),
)

# ------------------------------------------------------------------------------------------------------ the studies

LOOKUP: dict[str, Any] = yaml.safe_load("""
baseline: outcome_only
seeds: [0]
processes: 1
arms:
  outcome_only: {reward: outcome_only}
  igpo: {gain: log_prob_diff}
base:
  data: {kind: lookup, hops: 2, names: 8, people: 5, train: 64, dev: 16, test: 16}
  policy: {kind: new, width: 32, layers: 2, feed_forward: 64, window: 512}
  rollout: {questions: 4, group_size: 4, max_turns: 4, max_tokens: 256}
  training: {epochs: 2, steps_per_epoch: 2}
  evaluation: {every: 2, dev_questions: 8, test_questions: 8, traces: 2}
  warm_start:
    stages:
      - {steps: 150, learning_rate: 0.01, batch_size: 16, warmup_steps: 5, demonstrations: {kind: lookup}}
""")

ATLAS: dict[str, Any] = yaml.safe_load("""
baseline: outcome_only
primary: igpo_rms
seeds: [0]
processes: 1
arms:
  outcome_only: {reward: outcome_only}
  igpo_rms: {gain: prob_diff, normalization: {kind: root_mean_square, floor: 0.01}}
  log_contrast: {gain: {kind: log_prob_diff, contrast: 2}}
  first_exposure: {gain: first_exposure}
base:
  data:
    {kind: atlas, hops: 2, names: 8, key_count: 6, continents: 2, branching: 2, train: 64, dev: 16, test: 16}
  policy: {kind: new, width: 32, layers: 2, feed_forward: 64, window: 512}
  reward: {format_penalty: -1, penalty_on: turn}
  rollout: {questions: 4, group_size: 4, max_turns: 4, max_tokens: 256}
  training: {epochs: 2, steps_per_epoch: 2}
  evaluation: {every: 2, dev_questions: 8, test_questions: 8, traces: 2}
  warm_start:
    stages:
      - steps: 150
        learning_rate: 0.01
        batch_size: 16
        warmup_steps: 5
        demonstrations: {kind: atlas, right_key: 0.5, geography_lines: 4}
""")

CHAT: dict[str, Any] = yaml.safe_load(f"""
baseline: outcome_only
seeds: [0]
processes: 1
arms:
  outcome_only: {{reward: outcome_only}}
  igpo: {{gain: log_prob_diff}}
base:
  data:
    kind: files
    questions: [{{path: {ROOT}/examples/questions.csv}}]
    corpus: [{ROOT}/examples/passages.csv]
    top_k: 2
  policy:
    {{kind: new, architecture: qwen2, tokenizer: chat, vocabulary: 512, width: 64, layers: 2, key_value_heads: 2,
     feed_forward: 128, window: 2048}}
  rollout: {{questions: 2, group_size: 4, max_turns: 3, max_new_tokens: 96, max_tokens: 1024}}
  training: {{epochs: 1, steps_per_epoch: 2}}
  evaluation: {{every: 2, dev_questions: 4, test_questions: 4, decoding: [sampled], diagnostics: 8, traces: 2}}
  warm_start:
    stages:
      - {{steps: 200, learning_rate: 0.003, batch_size: 8, warmup_steps: 10, demonstrations: {{kind: files}}}}
""")


def altered(content: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    """Return a specification with other settings in these sections of its base."""
    base = {**content["base"], **{name: {**content["base"][name], **new} for name, new in sections.items()}}
    return {**content, "base": base}


def run_lookup(side: "Side") -> None:
    groups = {
        "2": {"rollout.group_size": 2, "rollout.questions": 8},
        "4": {"rollout.group_size": 4, "rollout.questions": 4},
    }
    side.sweep("lookup", {**LOOKUP, "factors": {"group": groups}})


def run_atlas(side: "Side") -> None:
    side.sweep("atlas", ATLAS)


def run_files(side: "Side") -> None:
    """A chat model that is built and taught here, then an adapter on what came of it."""
    side.sweep("files", CHAT)
    base = {name: content for name, content in CHAT["base"].items() if name != "warm_start"}
    policy = {
        "kind": "pretrained",
        "name": str(side.keep_model("files", "outcome_only")),
        "lora": {"rank": 4, "alpha": 8},
    }
    side.sweep("files-lora", {**CHAT, "base": {**base, "policy": policy}})


def run_ranks(side: "Side") -> None:
    side.sweep("ranks", altered(LOOKUP, training={"processes": 2, "epochs": 1}))


def run_killed(side: "Side") -> None:
    """All of a sweep's processes are killed while its first arm trains; the same command ends it."""
    content = altered(LOOKUP, training={"epochs": 8, "steps_per_epoch": 1})
    side.kill_sweep("killed", content, last=8)
    side.sweep("killed", content)


STUDIES: dict[str, tuple[Callable[["Side"], None], tuple[str, ...]]] = {
    "lookup": (run_lookup, ("lookup",)),
    "atlas": (run_atlas, ("atlas",)),
    "files": (run_files, ("files", "files-lora")),
    "ranks": (run_ranks, ("ranks",)),
    "killed": (run_killed, ("killed",)),
}

# ------------------------------------------------------------------------------------------------------ running


class Stopped(Exception):
    """The comparison was told to end."""


@dataclass
class Side:
    """A checkout with servers and an IGPO_HOME of its own."""

    name: str
    checkout: Path
    home: Path
    ports: tuple[int, int]
    _running: subprocess.Popen[bytes] | None = None
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        foreign = ("PREFECT_", "MLFLOW_", "IGPO_", "MAKE", "MFLAGS")
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            "PYTHONPATH": str(self.checkout),  # before what is installed, which may be another checkout
            "IGPO_HOME": str(self.home),
            "MLFLOW_PORT": str(self.ports[0]),
            "PREFECT_PORT": str(self.ports[1]),
        }

    def describe(self) -> str:
        """Path and commit. Raises BrokenStudy where this Python would import another checkout's code there."""
        code = "import igpo_core; print(igpo_core.__path__[0])"
        asked = [sys.executable, "-c", code]
        found = subprocess.run(asked, cwd=self.checkout, env=self.environment, capture_output=True, text=True)
        if Path(found.stdout.strip()).resolve() != self.checkout / "igpo_core":
            raise BrokenStudy(f"{self.checkout} does not import its own igpo_core: {found.stdout}{found.stderr}")
        git = ["git", "-C", str(self.checkout), "describe", "--always", "--dirty"]
        commit = subprocess.run(git, capture_output=True, text=True)
        return f"{self.name}: {self.checkout} ({commit.stdout.strip() or 'no commit'})"

    def make(self, target: str, *settings: str) -> subprocess.Popen[bytes]:
        """Start make in a session of its own, where a Ctrl-C of the terminal does not reach it. The target `environment`,
        which installs, counts as made."""
        command = ["make", "-C", str(self.checkout), "-o", "environment", f"BIN={Path(sys.executable).parent}"]
        with (self.home / "bits.log").open("ab") as log:
            return subprocess.Popen(
                [*command, target, *settings],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @contextlib.contextmanager
    def ablation(self, study: str, content: Mapping[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
        path = self.home / f"{study}.yaml"
        arms = {arm: self.spelt(settings) for arm, settings in content["arms"].items()}
        path.write_text(yaml.safe_dump({"name": study, **content, "arms": arms}))
        with self._lock:
            if self._stopped:
                raise Stopped
            self._running = self.make("ablation", f"PRESET={path}")
        try:
            yield self._running
        finally:
            kill_tree(self._running)
        if self._stopped:
            raise Stopped

    def spelt(self, arm: Mapping[str, Any]) -> dict[str, Any]:
        """Return an arm's settings as this checkout names them: before arms had variants, parameters stood beside them."""
        if (self.checkout / "igpo_core" / "rewards" / "functions.py").is_file():
            return dict(arm)
        flat: dict[str, Any] = {}
        for name, value in arm.items():
            given = dict(value) if isinstance(value, dict) else {"kind": value}
            flat[name] = given.pop("kind")
            flat |= {{"floor": "gain_floor"}.get(key, key): parameter for key, parameter in given.items()}
        return flat

    def sweep(self, study: str, content: Mapping[str, Any]) -> None:
        """Raises BrokenStudy, with the end of its log, where it does not end well."""
        with self.ablation(study, content) as process:
            status = process.wait()
        if status:
            raise BrokenStudy(f"{self.name} {study}: make ended with exit status {status}\n{self.tail()}")

    def kill_sweep(self, study: str, content: Mapping[str, Any], *, last: int) -> None:
        """Kill (-9) all processes of a sweep once a run has a checkpoint on the way to its last step."""
        runs, before = self.home / "runs", self.checkpoints()
        with self.ablation(study, content) as process:
            while not (seen := [path for path in self.checkpoints() - before if 2 <= (step_of(path) or 0) < last]):
                if process.poll() is not None:
                    raise BrokenStudy(f"{self.name} {study}: ended before it had a checkpoint in {runs}\n{self.tail()}")
                time.sleep(0.05)
        run = runs / seen[0].relative_to(runs).parts[0]
        if any(step_of(path) == last for path in run.rglob("*.safetensors")):
            raise BrokenStudy(f"{self.name} {study}: the kill came too late, step {last} was there: start again")

    def checkpoints(self) -> set[Path]:
        return {path for path in (self.home / "runs").rglob("*.safetensors") if step_of(path) is not None}

    def keep_model(self, study: str, arm: str) -> Path:
        """Copy the last checkpoint of an arm out of its run's folder; return where it is then."""
        with contextlib.closing(sqlite3.connect(f"file:{next(self.home.rglob('mlflow.db'))}?mode=ro", uri=True)) as db:
            ((key,),) = db.execute(
                "select k.value from runs r join experiments e on e.experiment_id = r.experiment_id "
                "join tags k on k.run_uuid = r.run_uuid and k.key = 'run_key' "
                "join tags a on a.run_uuid = r.run_uuid and a.key = 'arm' where e.name = ? and a.value = ?",
                (study, arm),
            )
        of_run = [path for path in self.checkpoints() if key in path.parts]
        return Path(shutil.copytree(max(of_run, key=lambda path: step_of(path) or 0).parent, self.home / "model"))

    def tail(self) -> str:
        return "\n".join((self.home / "bits.log").read_text(errors="replace").splitlines()[-40:])

    def stop(self) -> None:
        """End the sweep that runs; none is started any more."""
        with self._lock:
            self._stopped = True
            if self._running is not None:
                kill_tree(self._running)


def end_servers(sides: Sequence[Side]) -> None:
    for side, process in [(side, side.make("down")) for side in sides]:
        if process.wait():
            print(f"error: `make down` failed for {side.name}:\n{side.tail()}", file=sys.stderr)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started. They are stopped first: none sees another die and starts or saves anything."""
    stopped: set[psutil.Process] = set()
    while True:
        try:
            root = psutil.Process(process.pid) if process.poll() is None else None
            fresh = {root, *root.children(recursive=True)} - stopped if root else set()
        except psutil.NoSuchProcess:
            break
        if not fresh:
            break
        for one in fresh:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
                one.suspend()
        stopped |= fresh
    for one in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(stopped, timeout=10)


def free_ports(count: int) -> list[int]:
    """Ports from 6200 on that nobody listens on."""
    found: list[int] = []
    for port in random.sample(range(6200, 9200), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):  # taken: another one
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise BrokenStudy("no free ports between 6200 and 9200")


def both(sides: Sequence[Side], act: Callable[[Side], Any]) -> list[Any]:
    """Let both sides act at the same time; where one fails, or this process is told to end, the other is stopped."""
    with ThreadPoolExecutor(len(sides)) as pool:
        futures = [pool.submit(act, side) for side in sides]
        try:
            while not all(future.done() for future in futures):
                for future in futures:
                    if future.done():
                        future.result()  # raises what it raised
                time.sleep(0.1)
        except BaseException:
            for side in sides:
                side.stop()
            raise
    return [future.result() for future in futures]


def run(sides: Sequence[Side], chosen: Sequence[str]) -> int:
    """Run and compare the studies; returns how many differences there are that are not meant."""
    print(*(side.describe() for side in sides), sep="\n")
    print(f"\n{'study':<12}{'values':>8}{'tensors':>9}{'trajectories':>14}{'seconds':>9}   result", flush=True)
    count = 0
    for choice in chosen:
        act, names = STUDIES[choice]
        started = time.monotonic()
        both(sides, act)
        seconds = f"{time.monotonic() - started:.0f}"
        for name in names:
            old, new = (read_study(side.home, name) for side in sides)
            found = compare(renamed(old, RENAMED), new, name, MEANT)
            print(
                f"{name:<12}{found.values:>8}{found.tensors:>9}{found.trajectories:>14}{seconds:>9}   {found.verdict}",
                *(f"    {words}" for words in found.different[:SHOWN]),
                *(f"    by design: {words} ({reason})" for words, reason in found.meant[:SHOWN]),
                sep="\n",
                flush=True,
            )
            count, seconds = count + len(found.different), ""
    return count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bits", description="Do two checkouts compute the same?")
    parser.add_argument("old", type=Path, help="a checkout")
    parser.add_argument("new", type=Path, help="another")
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    chosen = parser.parse_args()
    for checkout in (chosen.old, chosen.new):
        if not (checkout / "Makefile").is_file():
            parser.error(
                f"{checkout} is no checkout: it holds no Makefile. `git worktree add {checkout} <commit>` makes one"
            )
    endings = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in endings:  # a shell's background job ignores SIGINT
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="bits-") as folder:
        ports = free_ports(4)
        sides = [
            Side("old", chosen.old.resolve(), Path(folder, "old"), (ports[0], ports[1])),
            Side("new", chosen.new.resolve(), Path(folder, "new"), (ports[2], ports[3])),
        ]
        for side in sides:
            side.home.mkdir(mode=0o700)
        try:
            return 1 if run(sides, chosen.only) else 0
        except BrokenStudy as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("told to end", file=sys.stderr)
            return 130
        finally:
            for number in endings:  # a second one must not leave servers behind
                signal.signal(number, signal.SIG_IGN)
            end_servers(sides)


if __name__ == "__main__":
    sys.exit(main())
