"""prepare-data on generated rows: rows per second, peak memory, and how both grow.

python -m benchmarks.data [--rows 10000 100000 1000000]. Each size runs in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import show

SPLITS = ("train", "train", "train", "train", "train", "train", "train", "train", "dev", "test")


def write(folder: Path, rows: int) -> None:
    """A question file of so many rows, one in a thousand of them bad, and a corpus of a passage for every ten."""
    with (folder / "questions.jsonl").open("w") as file:
        for i in range(rows):
            row = {
                "id": f"q{i}", "split": SPLITS[i % 10], "question": f"Who wrote book number {i} of the long series?",
                "answers": [] if i % 1000 == 999 else [f"Author {i % 5000}", f"A. {i % 5000}"],
                "supporting_titles": [f"Book {i // 10}"],
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    with (folder / "corpus.jsonl").open("w") as file:
        for i in range(0, rows, 10):
            text = (
                f"Book {i // 10} is a volume of the long series, printed in {1800 + i % 200} in the town of X{i % 977}."
            )
            file.write(json.dumps({"passage_id": f"p{i}", "title": f"Book {i // 10}", "text": text}) + "\n")


def measure(folder: Path) -> None:
    """Prints seconds by stage, rows quarantined and peak bytes."""
    from igpo_core.config import QuestionFile, QuestionFiles
    from tasks.data.publishing import prepare

    config = QuestionFiles(
        questions=(QuestionFile(path=folder / "questions.jsonl"),), corpus=(folder / "corpus.jsonl",)
    )
    started = time.perf_counter()
    published = prepare(config, folder / "home")
    spent = {"all": time.perf_counter() - started, **published.seconds}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("\n" + json.dumps({"seconds": spent, "quarantined": published.quarantined, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.folder:
        measure(chosen.folder)
        return
    rows = []
    for count in chosen.rows:
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), count)
            command = [sys.executable, "-m", "benchmarks.data", "--folder", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        assert found["quarantined"] == count // 1000
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in found["seconds"].items() if stage != "all")
        spent = found["seconds"]["all"]
        rows.append(
            (
                f"{count:,} rows",
                f"{spent:.1f} s ({count / spent:,.0f} rows/s; {stages}), peak {found['peak'] / 2**30:.2f} GiB",
            )
        )
    show("prepare-data on generated questions, a passage for every ten", "1,000,000 rows: 180 s and 4 GiB", rows, 1)


if __name__ == "__main__":
    main()
