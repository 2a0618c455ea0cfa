"""Question and passage files for tests of reading, validating and publishing."""

import json
from pathlib import Path
from typing import Any

from igpo_core.config import QuestionFiles

PASSAGES = [
    {"passage_id": "p1", "title": "Warsaw", "text": "Warsaw is the capital of Poland today."},
    {"passage_id": "p2", "title": "Paris", "text": "Paris is the capital of France today."},
    {"passage_id": "p3", "title": "Oslo", "text": "Oslo is the capital of Norway today."},
]


def row(identity: str, split: str | None, **changes: Any) -> dict[str, Any]:
    base = {"id": identity, "split": split, "question": f"Question {identity}?", "answers": ["Ann"], "source": "nq"}
    return {**base, **changes}


GOOD = [row("g1", "train", supporting_titles=["Warsaw"]), row("g2", "dev"), row("g3", "test")]


def lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return path


def files(folder: Path, questions: list[Any], passages: list[Any] = PASSAGES, **settings: Any) -> QuestionFiles:
    """Settings for one question file and one passage file, written into `folder`."""
    chosen = {
        "questions": [{"path": lines(folder / "q.jsonl", questions)}],
        "corpus": [lines(folder / "c.jsonl", passages)],
        **settings,
    }
    return QuestionFiles.model_validate(chosen)


def trajectory(name: str, question: str, answer: str = "Ann", turns: int = 1) -> dict[str, object]:
    """An expert trajectory of so many searches and an answer."""
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "search", "arguments": {"query": "Oslo"}}}]}
    searches = [called, {"role": "tool", "content": f"1. Oslo: {name}"}] * turns
    return {
        "id": name,
        "messages": [{"role": "user", "content": question}, *searches, {"role": "assistant", "content": answer}],
    }
