"""Makes data/real-small from larger tables of real questions: python -m benchmarks.real_small FOLDER.

FOLDER holds questions.parquet and corpus.parquet with the columns of docs/data.md, and of each row its `origin` and
`context_passage_ids`. Taken are questions whose every origin states a licence, in the splits that they have there, with the
passages that came with them. The choice depends on the ids alone; two calls write the same bytes.
"""

import argparse
import gzip
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from tasks.lab.home import PROJECT

PLACE = PROJECT / "data" / "real-small"
# repository -> commit and licence: those of which rows are taken
ORIGINS = {
    "yhshu/HippoRAG": ("c3424ec20933", "MIT"),
    "xindili-cmu/anlp-project-multihop": ("df0d5757f42f", "Apache-2.0"),
    "Xinowo/cs6120-hotpotqa-retrieval-failure-analysis": ("d43a3a628bd3", "MIT"),
}
# (source, split, repository that the row was read from first) -> questions
WANTED = {
    ("hotpotqa", "train", "yhshu/HippoRAG"): 100,
    ("hotpotqa", "train", "xindili-cmu/anlp-project-multihop"): 60,
    ("hotpotqa", "dev", "xindili-cmu/anlp-project-multihop"): 30,
    ("musique", "dev", "yhshu/HippoRAG"): 30,
    ("hotpotqa", "test", "xindili-cmu/anlp-project-multihop"): 80,
}
COLUMNS = ("id", "source", "split", "question", "answers", "supporting_titles", "hops")


def repositories(origin: str) -> list[str]:
    """Return the repositories that an origin ("owner/name:path ; owner/name:path + path") names, the first one first."""
    return [part.partition(":")[0].strip() for part in origin.split(" ; ")]


def choose(questions: pandas.DataFrame) -> pandas.DataFrame:
    """Return the questions that are shipped, in order of split, source and id. Raises ValueError where there are too few."""
    known = questions[questions["answerable"]].copy()
    known["repositories"] = known["origin"].map(repositories)
    known = known[known["repositories"].map(lambda names: all(name in ORIGINS for name in names))]
    known["order"] = known["id"].map(lambda name: hashlib.sha256(name.encode()).hexdigest())
    found = []
    for (source, split, repository), count in WANTED.items():
        first = known["repositories"].map(lambda names: names[0])
        rows = known[(known["source"] == source) & (known["split"] == split) & (first == repository)]
        if len(rows) < count:
            raise ValueError(f"{len(rows)} questions of {source}, {split}, {repository}, and {count} are wanted")
        found.append(rows.sort_values("order").head(count))
    chosen = pandas.concat(found)
    return chosen.sort_values(["split", "source", "id"])


def packed(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return rows as gzipped JSON Lines, the same bytes for the same rows."""
    held = io.BytesIO()
    with gzip.GzipFile(fileobj=held, mode="wb", mtime=0) as file:
        file.write(as_lines(rows))
    return held.getvalue()


def as_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def make(folder: Path) -> dict[str, bytes]:
    """Return the files of data/real-small that are made: questions, corpus, provenance."""
    questions = choose(pandas.read_parquet(folder / "questions.parquet"))
    corpus = pandas.read_parquet(folder / "corpus.parquet").set_index("passage_id")
    wanted = sorted({*(name for names in questions["context_passage_ids"] for name in names),
                     *(name for names in questions["supporting_passage_ids"] for name in names)})  # fmt: skip
    rows = [
        {name: _plain(row[name]) for name in COLUMNS} | {"origin": row["origin"]}
        for row in questions.to_dict("records")
    ]
    passages = [{"passage_id": name, "title": corpus["title"][name], "text": corpus["text"][name]} for name in wanted]
    files = {"questions.jsonl": as_lines(rows), "corpus.jsonl.gz": packed(passages)}
    used = Counter(name for origin in questions["origin"] for name in repositories(origin))
    provenance = {
        "made_by": "python -m benchmarks.real_small ../shared/data",
        "questions": {f"{source}, {split}": int(count) for (source, split), count
                      in questions.groupby(["source", "split"]).size().items()},
        "passages": len(passages),
        "origins": [
            {"repository": f"https://github.com/{name}", "commit": ORIGINS[name][0], "licence": ORIGINS[name][1],
             "questions": used[name], "files": _files(questions["origin"], name)}
            for name in ORIGINS
        ],
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }  # fmt: skip
    return {**files, "provenance.json": (json.dumps(provenance, indent=1) + "\n").encode()}


def _files(origins: "pandas.Series[str]", repository: str) -> list[str]:
    paths = {
        path.strip()
        for origin in origins
        for part in origin.split(" ; ")
        if part.startswith(f"{repository}:")
        for path in part.partition(":")[2].split(" + ")
    }
    return sorted(paths)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return None if value is pandas.NA else value


def main(arguments: list[str]) -> int:
    """Write the files. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_small", description=__doc__)
    parser.add_argument("folder", type=Path)
    for name, content in make(parser.parse_args(arguments).folder).items():
        (PLACE / name).write_bytes(content)
        print(f"{PLACE / name}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
