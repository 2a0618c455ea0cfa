"""A whole sweep over odd but valid text, with servers of its own."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Servers

pytestmark = [pytest.mark.e2e, pytest.mark.night, pytest.mark.timeout(1800)]

ODD = [
    "plain", "with \x00 NUL", "\u202eright to left\u202c", "zero\u200bwidth", "emoji 👩\u200d👩\u200d👧🏽", "line\u2028sep",
    "<script>alert(1)</script>", "</script><b>bold", "<|im_end|> token", "it's \"quoted\" \\ back", "{seed} {0} %s %d",
    "a,b;c|d", "=SUM(A1)", "\ufeffBOM", "½ ² ﬁ", "C++", "दिल्ली", "東京都", "ภูเก็ต", "עברית وبالعربية",
]  # fmt: skip


def test_odd_text_goes_through_a_whole_sweep(servers: Servers, tmp_path: Path) -> None:
    rows = [
        {"id": f"{split} {number}\n{text[:12]}'\"%", "question": f"Question {split} {number}: what of {text}?", "split": split,
         "answers": [f"answer {text}", text], "supporting_titles": [f"Title {text}"]}
        for split, times in (("train", 2), ("dev", 1), ("test", 1))
        for number, text in enumerate(ODD * times)
    ]  # fmt: skip
    passages = [
        {
            "passage_id": f"p{number}",
            "title": f"Title {text}",
            "text": f"A passage of more than five words about {text}.",
        }
        for number, text in enumerate(ODD)
    ]
    for name, table in (("q.jsonl", rows), ("c.jsonl", passages)):
        (tmp_path / name).write_text("".join(json.dumps(item) + "\n" for item in table))
    preset = {
        "name": "odd-text", "baseline": "outcome_only", "seeds": [0], "processes": 1,
        "arms": {"outcome_only": {"reward": "outcome_only"}, "prob": {"gain": "prob_diff"}},
        "base": {
            "data": {"kind": "files", "questions": [{"path": str(tmp_path / "q.jsonl")}], "corpus": [str(tmp_path / "c.jsonl")],
                     "top_k": 2},
            "policy": {"kind": "new", "architecture": "qwen2", "tokenizer": "chat", "vocabulary": 800, "width": 32, "layers": 2,
                       "heads": 4, "key_value_heads": 2, "feed_forward": 64, "window": 2048},
            "rollout": {"questions": 2, "group_size": 2, "max_turns": 3, "max_new_tokens": 96, "max_tokens": 1024},
            "training": {"epochs": 1, "steps_per_epoch": 2},
            "evaluation": {"every": 1, "dev_questions": 8, "test_questions": 20, "traces": 4},
            "warm_start": {"stages": [{"steps": 20, "learning_rate": 1.0e-2, "batch_size": 4, "warmup_steps": 2,
                                       "demonstrations": {"kind": "files"}}]},
        },
    }  # fmt: skip
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(preset, allow_unicode=True))
    done = servers.run(sys.executable, "-m", "flows.ablation", str(tmp_path / "p.yaml"), timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    printed = done.stdout[done.stdout.index("\narm ") :]
    assert "outcome_only" in printed and "prob" in printed
    pages = list(servers.home.rglob("report*.html"))
    assert all("<script>alert(1)" not in page.read_text() for page in pages)
