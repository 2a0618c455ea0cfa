"""BM25 over the benchmark's passages and over a million generated ones: build, speed, and memory of two processes.

python -m benchmarks.retrieval [--passages 39466 1000000]
"""

import argparse
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

QUERIES = 2000


def corpus(count: int) -> "tuple[object, list[str]]":
    """(passages, queries): the benchmark's own when its size is asked for and it is there, else generated."""
    import pandas

    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    if count == 39_466 and shared.is_dir():
        questions = pandas.read_parquet(shared / "questions.parquet")["question"].tolist()
        return pandas.read_parquet(shared / "corpus.parquet")[["passage_id", "title", "text"]], questions[:QUERIES]
    rng = random.Random(0)
    vocabulary = [f"w{int(rng.paretovariate(0.7)) % 200_000}" for _ in range(200_000)]
    texts = [" ".join(rng.choices(vocabulary, k=60)) for _ in range(count)]
    frame = pandas.DataFrame(
        {"passage_id": [f"p{i}" for i in range(count)], "title": [f"Title {i}" for i in range(count)], "text": texts}
    )
    return frame, [" ".join(rng.choices(vocabulary, k=8)) for _ in range(QUERIES)]


def build(count: int, folder: Path) -> None:
    """Prints seconds and bytes of the index, and leaves the queries beside it."""
    from igpo_core.retrieval.bm25 import BM25

    frame, queries = corpus(count)
    started = time.perf_counter()
    BM25.build(frame, folder / "bm25")  # type: ignore[arg-type]
    size = sum(path.stat().st_size for path in (folder / "bm25").iterdir())
    (folder / "queries.json").write_text(json.dumps(queries))
    print("\n" + json.dumps({"seconds": time.perf_counter() - started, "bytes": size}))


def serve(folder: Path, report: Any, end: Any) -> None:
    """Search everything, report queries/s, then hold the index until told to end."""
    from igpo_core.retrieval.bm25 import BM25

    queries = json.loads((folder / "queries.json").read_text())
    retriever = BM25.open(folder / "bm25")
    started = time.perf_counter()
    for start in range(0, len(queries), 64):
        retriever.search(queries[start : start + 64], 5)
    report.put(len(queries) / (time.perf_counter() - started))
    end.wait()


def memory(numbers: "list[int]") -> float:
    """Bytes that the processes hold together, shared pages counted once (PSS)."""
    total = 0
    for number in numbers:
        for line in Path(f"/proc/{number}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def two_arms(folder: Path) -> tuple[list[float], list[float]]:
    """(queries/s of each, bytes held by one and by both), forked from a server as flows/children.py forks arms."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["igpo_core.retrieval.bm25"])
    end, report = context.Event(), context.Queue()
    arms: list[Any] = []
    speeds, held = [], []
    for _ in range(2):
        arms.append(context.Process(target=serve, args=(folder, report, end)))
        arms[-1].start()
        speeds.append(report.get())
        fork_server = psutil.Process(arms[0].pid).ppid()
        held.append(memory([fork_server, *(arm.pid for arm in arms)]))
    end.set()
    for arm in arms:
        arm.join()
    return speeds, held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, nargs="+", default=[39_466, 1_000_000])
    parser.add_argument("--build", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.build:
        build(chosen.build, chosen.folder)
        return
    from benchmarks.common import show  # brings torch, which the arms here must not inherit

    rows = []
    for count in chosen.passages:
        with tempfile.TemporaryDirectory() as name:
            command = [sys.executable, "-m", "benchmarks.retrieval", "--folder", name]
            done = subprocess.run([*command, "--build", str(count)], capture_output=True, text=True, check=True)
            made = json.loads(done.stdout.strip().splitlines()[-1])
            speeds, held = two_arms(Path(name))
        rows.append(
            (
                f"{count:,} passages",
                f"build {made['seconds']:.1f} s, {made['bytes'] / 2**20:,.0f} MiB on disk; {speeds[0]:,.0f} queries/s; one "
                f"process {held[0] / 2**20:,.0f} MiB, two {held[1] / 2**20:,.0f} MiB ({held[1] / held[0]:.2f} times)",
            )
        )
    show("BM25: build, speed, and memory of two processes that share an index", "two under 1.3 times one", rows, 1)


if __name__ == "__main__":
    main()
