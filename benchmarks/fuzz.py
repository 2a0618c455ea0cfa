"""A fuzzer over everything that is read from outside: tables, YAML, turns, and the answers of services.

python -m benchmarks.fuzz --seconds 3600             (all targets of benchmarks/fuzz_targets.py, on two cores)
python -m benchmarks.fuzz --seconds 300 --only web   (those whose names begin so)
python -m benchmarks.fuzz --repeat FILE --only yaml  (one input again)
python -m benchmarks.fuzz --prove                    (faults put back one at a time: each must be found)

Inputs are written and damaged by hypothesis, which also makes finds small. What reaches a line of the product for the first time
is kept and damaged further. A find is an exception that is none of igpo_core.errors, an invariant that does not hold, or an
input that takes more time, memory or the process. Each find is a file in --out, beside a text with the command that repeats it;
the exit status is 1 where there are any.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import settrace as trace_threads
from types import CodeType, FrameType
from typing import Any, Literal, get_args

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = tuple(str(ROOT / folder) + os.sep for folder in ("igpo_core", "flows", "tasks"))
REVERTS = Path(__file__).with_name("fuzz_reverts")
GROWN = 3  # exit status of a process that holds too much to judge an input: another one goes on
ROUND = 200  # inputs from one strategy, before it is made anew with what was found worth keeping
KEPT, KEPT_BYTES = 400, 65_536  # inputs that are damaged further, and the longest of them
SHRINKING = 20.0  # seconds for making one find small
SILENT = 120.0  # seconds after which a process that tries no other input is ended
MOST_MEMORY = 8 * 2**30  # of a process: what takes more is refused by the system, as MemoryError
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a folder that no disk is waited for
FINDS = 50  # of a target, with different causes: more are not kept

Kind = Literal["foreign exception", "broken invariant", "too slow", "too large", "process died"]


class TooSlow(BaseException):
    """Not an Exception: code that is tried must not take it for an error of its own."""


class Over(BaseException):
    """The time of a target, or of making a find small, is over."""


@dataclass(frozen=True)
class Find:
    """key: what tells its cause from another's. told: its traceback, or what was measured. error: what was raised."""

    kind: Kind
    key: str
    told: str
    error: BaseException | None = None


@dataclass
class Counts:
    """Of one target. finds: of different causes, by kind. refused: by the product's own errors. broken: why the fuzzer itself
    could not go on with it."""

    tried: int = 0
    refused: int = 0
    lines: int = 0
    seconds: float = 0.0
    finds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(get_args(Kind), 0))
    broken: str = ""

    @property
    def found(self) -> int:
        return sum(self.finds.values())


class Coverage:
    """The product's lines that have been reached, for sys.settrace. fresh: whether one was new since it was last unset."""

    STALE = 2000  # calls of a function without a new line: from then on one call in STRIDE is looked at
    STRIDE = 20

    def __init__(self) -> None:
        self.fresh = False
        self.reached = 0
        self._left: dict[CodeType, set[int]] = {}
        self._stale: dict[CodeType, int] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        left = self._left.get(code)
        if left is None:
            ours = code.co_filename.startswith(PRODUCT)
            left = self._left[code] = {line for *_, line in code.co_lines() if line} if ours else set()
        if not left:
            return None
        calls = self._stale[code] = self._stale.get(code, 0) + 1
        return None if calls > self.STALE and calls % self.STRIDE else self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        left = self._left[frame.f_code]
        if event == "line" and frame.f_lineno in left:
            left.discard(frame.f_lineno)
            self.fresh = True
            self.reached += 1
            self._stale[frame.f_code] = 0
        return self._line


class Hunt:
    """One target in this process. folder: for finds, and `current`, the input that is being tried."""

    def __init__(self, target: Any, check: Any, folder: Path, coverage: Coverage) -> None:
        self.target, self.check, self.folder, self.coverage = target, check, folder, coverage
        self.counts = Counts()
        self.known: set[str] = set()
        self.corpus: list[bytes] = list(target.seeds())

    def go(self, ends: float, seed: int, first_find: bool = False) -> None:
        """Try inputs until the moment `ends` (time.monotonic), or the first find."""
        started = time.monotonic()
        with contextlib.suppress(Over):
            for content in tuple(self.corpus):
                find = self._tried(content, ends)
                if find is not None:
                    self._save(content, find)
            while not (first_find and self.counts.found):
                self._round(ends, seed)
                seed += 1
                self.counts.seconds = time.monotonic() - started
                self._write_counts()
        self.counts.seconds = time.monotonic() - started
        self._write_counts()

    def attempt(self, content: bytes) -> Find | None:
        """Try one input; what is wrong with what became of it."""
        from benchmarks.fuzz_targets import Broken
        from igpo_core.errors import IgpoError

        if _memory("VmData") > MOST_MEMORY // 2:  # of what was tried before: what this input takes could not be told
            self._write_counts()
            os._exit(GROWN)  # no exception: hypothesis would try the input again
        (self.folder / "current").write_bytes(content)
        self.counts.tried += 1
        before = _reset_peak()
        find: Find | None = None
        try:
            with _processor_time(self.target.seconds), _traced(self.coverage):
                self.check(content)
        except IgpoError:
            self.counts.refused += 1
        except Broken as error:
            find = Find("broken invariant", f"broken: {error}", traceback.format_exc(), error)
        except TooSlow as error:
            told = f"more than {self.target.seconds:g} s of processor time\n{traceback.format_exc()}"
            find = Find("too slow", f"slow: {_place(error)}", told, error)
        except (Exception, SystemExit) as error:
            find = Find("foreign exception", f"{type(error).__name__}: {_place(error)}", traceback.format_exc(), error)
        grown = _peak() - before
        if find is None and grown > self.target.memory:
            find = Find("too large", "large", f"{grown / 2**20:.0f} MiB for {len(content)} bytes")
        return find

    def _round(self, ends: float, seed: int) -> None:
        from hypothesis import HealthCheck, Phase, given, settings
        from hypothesis import seed as seeded

        small: dict[str, tuple[bytes, Find]] = {}
        limit = ends

        def run(content: bytes) -> None:
            nonlocal limit
            self.coverage.fresh = False
            find = self._tried(content, limit)
            if self.coverage.fresh and len(content) <= KEPT_BYTES and len(self.corpus) < KEPT:
                self.corpus.append(content)
            if find is None or find.key in self.known:
                return
            if find.key not in small or len(content) <= len(
                small[find.key][0]
            ):  # of equal ones the last: hypothesis ends with the least
                small[find.key] = (content, find)
            if find.kind in ("too slow", "too large"):  # each try to make it smaller would take as long
                self._save(*small[find.key])
                return
            limit = min(ends, limit, time.monotonic() + SHRINKING) if limit == ends else limit
            assert find.error is not None
            raise find.error

        quick = settings(
            max_examples=ROUND,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        try:
            seeded(seed)(quick(given(self.target.inputs(tuple(self.corpus)))(run)))()
        except Over:
            if time.monotonic() >= ends:
                raise
        except BaseException:
            if not small:  # of the fuzzer's own
                raise
        finally:
            for content, find in small.values():
                self._save(content, find)

    def _tried(self, content: bytes, ends: float) -> Find | None:
        if time.monotonic() > ends:
            raise Over
        return self.attempt(content)

    def _save(self, content: bytes, find: Find) -> None:
        if find.key in self.known or self.counts.found >= FINDS:
            return
        self.known.add(find.key)
        self.counts.finds[find.kind] += 1
        save(self.folder, self.target.name, content, find)

    def _write_counts(self) -> None:
        self.counts.lines = self.coverage.reached
        written = self.folder / "counts.new"
        written.write_text(json.dumps(asdict(self.counts)))
        written.replace(self.folder / "counts.json")


def save(folder: Path, target: str, content: bytes, find: Find) -> Path:
    """The input, and a text with its kind, the command that repeats it, and what was seen."""
    name = f"{target}-{hashlib.sha256(find.key.encode()).hexdigest()[:8]}"
    path = folder / f"{name}.input"
    path.write_bytes(content)
    command = f"python -m benchmarks.fuzz --only {target} --repeat {path.name}"
    path.with_suffix(".txt").write_text(
        f"{find.kind}: {find.key}\n{command}\n\n{find.told[-8000:]}", encoding="utf-8", errors="backslashreplace"
    )
    return path


def _place(error: BaseException) -> str:
    """The innermost place of the product that an exception went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(PRODUCT)]
    return (
        f"{Path(frames[-1].filename).name}:{frames[-1].name}:{frames[-1].lineno}" if frames else "outside the product"
    )


@contextlib.contextmanager
def _processor_time(seconds: float) -> Iterator[None]:
    """Raise TooSlow beyond them: of all threads together, so that a busy machine makes nothing slow."""

    def stop(number: int, frame: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _traced(coverage: Coverage) -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(coverage)
    try:
        yield
    finally:
        sys.settrace(before)


def _reset_peak() -> int:
    """Make the system forget the peak of this process; its memory now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _peak() -> int:
    return _memory("VmHWM")


def _memory(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


# --------------------------------------------------------------------------------------------------------------- processes


def hunt(name: str, seconds: float, seed: int, folder: Path, first_find: bool) -> None:
    """A target in this process, which ends with it."""
    ends = time.monotonic() + seconds
    warnings.simplefilter("ignore")
    logging.disable()
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    from benchmarks.fuzz_targets import ALL

    coverage = Coverage()
    trace_threads(coverage)
    target = next(target for target in ALL if target.name == name)
    with target.ready() as check:
        Hunt(target, check, folder, coverage).go(ends, seed, first_find)


def watched(name: str, seconds: float, seed: int, out: Path, first_find: bool = False) -> Counts:
    """A target in processes of its own: one that dies or hangs is a find, and another goes on."""
    whole, ends = Counts(), time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 1 and not (first_find and whole.found):
        with tempfile.TemporaryDirectory(dir=MEMORY) as place:
            command = [sys.executable, "-m", "benchmarks.fuzz", "--child", place, "--only", name]
            command += ["--seconds", f"{left:.1f}", "--seed", str(seed), *(["--first-find"] if first_find else [])]
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                "OMP_NUM_THREADS": "1",
            }
            with (Path(place) / "said").open("w") as said:
                child = subprocess.Popen(command, cwd=place, env=environment, stdout=said, stderr=said)
                hung = _hangs(child, Path(place) / "current")
            _add(whole, Path(place) / "counts.json")
            if (
                child.returncode == 1
            ):  # Python's own end: by an error of the fuzzer, for what is tried raises within `attempt`
                lines = (Path(place) / "said").read_text(errors="replace").splitlines()[-30:]
                whole.broken = "\n".join([f"{name} cannot be fuzzed:", *(line[:300] for line in lines)])
            elif child.returncode not in (0, GROWN):
                current = Path(place) / "current"
                why = f"no end within {SILENT:g} s" if hung else f"status {child.returncode}"
                told = f"{why}\n{(Path(place) / 'said').read_text(errors='replace')[-4000:]}"
                digest = hashlib.sha256(current.read_bytes()).hexdigest()
                save(Path(place), name, current.read_bytes(), Find("process died", f"{why}: {digest}", told))
                whole.finds["process died"] += 1
            for path in Path(place).glob(f"{name}-*.*"):
                shutil.move(path, out / path.name)
        if whole.broken:
            break
        seed += 1_000_000
    return whole


def _hangs(child: "subprocess.Popen[bytes]", current: Path) -> bool:
    """Wait for the process; True where it had to be ended, because it tried no other input for SILENT seconds."""
    last = time.time()
    while True:
        try:
            child.wait(1)
            return False
        except subprocess.TimeoutExpired:
            last = max(last, current.stat().st_mtime) if current.is_file() else last
            if time.time() - last > SILENT:
                child.kill()
                child.wait()
                return True


def _add(whole: Counts, written: Path) -> None:
    if not written.is_file():
        return
    part = json.loads(written.read_text())
    whole.tried += part["tried"]
    whole.refused += part["refused"]
    whole.lines = max(whole.lines, part["lines"])
    whole.seconds += part["seconds"]
    for kind, count in part["finds"].items():
        whole.finds[kind] += count


def table(found: dict[str, Counts]) -> str:
    """A line for each target."""
    heads = ["target", "inputs tried", "refused by own errors", *get_args(Kind), "lines reached", "seconds"]
    rows = [
        [
            name,
            f"{counts.tried:,}",
            f"{counts.refused:,}",
            *map(str, counts.finds.values()),
            str(counts.lines),
            f"{counts.seconds:.0f}",
        ]
        for name, counts in found.items()
    ]
    widths = [max(len(row[place]) for row in [heads, *rows]) for place in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [heads, *rows]
    )


# --------------------------------------------------------------------------------------------------------------- the proof


def prove(seconds: float, seed: int, out: Path, only: Sequence[str]) -> int:
    """Put one mended fault after the other back into a copy of the code, and fuzz the target that it is in until it is found.

    Each patch in fuzz_reverts is of one fault: <target>.<name>.patch.
    """
    missed = 0
    for patch in sorted(REVERTS.glob("*.patch")):
        target, what = patch.name.split(".")[:2]
        if only and not any(target.startswith(name) for name in only):
            continue
        with tempfile.TemporaryDirectory() as place:
            copy = Path(place) / "tree"
            for folder in ("igpo_core", "flows", "tasks", "deployments", "benchmarks"):
                shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
            subprocess.run(["git", "apply", "--unsafe-paths", f"--directory={copy}", str(patch)], check=True, cwd=place)
            command = [
                sys.executable,
                "-m",
                "benchmarks.fuzz",
                "--only",
                target,
                "--seconds",
                str(seconds),
                "--seed",
                str(seed),
            ]
            started = time.monotonic()
            done = subprocess.run(
                [*command, "--first-find", "--out", str(out / what)], cwd=copy, capture_output=True, text=True
            )
            spent = time.monotonic() - started
        finds = sorted((out / what).glob("*.txt"))
        missed += not finds
        told = finds[0].read_text().splitlines()[0] if finds else f"NOT FOUND {done.stderr[-2000:]}"
        print(f"{target:14} {what:32} {spent:6.1f} s  {told[:120]}", flush=True)
    return 1 if missed else 0


def repeat(path: Path, name: str) -> int:
    """One input again, with what comes of it."""
    from benchmarks.fuzz_targets import ALL

    content = path.read_bytes()
    target = next(target for target in ALL if target.name == name)
    with target.ready() as check, tempfile.TemporaryDirectory() as place:
        started = time.process_time()
        find = Hunt(target, check, Path(place), Coverage()).attempt(content)
    print(f"{find.kind}: {find.told}" if find else f"nothing wrong, {time.process_time() - started:.2f} s")
    return 1 if find else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="of the whole run; with --prove, of each fault")
    parser.add_argument("--only", nargs="+", default=[], metavar="TARGET", help="targets whose names begin so")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="targets at the same time")
    parser.add_argument("--out", type=Path, default=Path("fuzz-finds"), help="folder for finds")
    parser.add_argument("--first-find", action="store_true", help="end a target with its first find")
    parser.add_argument("--repeat", type=Path, metavar="FILE")
    parser.add_argument("--prove", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        hunt(given.only[0], given.seconds, given.seed, given.child, given.first_find)
        return 0
    if given.repeat:
        return repeat(given.repeat, given.only[0])
    out = given.out.resolve()
    if given.prove:
        return prove(given.seconds, given.seed, out, given.only)
    from benchmarks.fuzz_targets import ALL

    names = [
        target.name for target in ALL if not given.only or any(target.name.startswith(name) for name in given.only)
    ]
    if not names:
        parser.error(f"no such target; there are {', '.join(target.name for target in ALL)}")
    out.mkdir(parents=True, exist_ok=True)
    jobs = min(given.jobs, len(names))
    each = given.seconds * jobs / len(names)
    with ThreadPoolExecutor(jobs) as pool:
        counts = list(pool.map(lambda name: watched(name, each, given.seed, out, given.first_find), names))
    print(table(dict(zip(names, counts, strict=True))))
    finds = sum(one.found for one in counts)
    print(f"{finds} finds{f' in {out}' if finds else ''}, seed {given.seed}")
    broken = [one.broken for one in counts if one.broken]
    for why in broken:
        print(why, file=sys.stderr)
    return 1 if finds or broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
