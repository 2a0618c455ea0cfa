"""A language model's verdicts, from a real local endpoint that hesitates, fails and rambles."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from igpo_core.config import JudgeSettings
from igpo_core.errors import ConfigError
from igpo_core.judge import Judge, Verdict, judged_metrics
from tests.igpo_core.judging import judging_server

REPLIES = {"right": "Yes.", "wrong": "no", "thinks": "<think>yes or no?</think> No", "rambles": "It depends."}


def reply(prompt: str) -> str:
    return next(reply for answer, reply in REPLIES.items() if f"Given answer: {answer}" in prompt)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("JUDGE_API_KEY", "hush")
    with judging_server(reply) as server:
        yield server


def settings(endpoint: Any, **changes: Any) -> JudgeSettings:
    return JudgeSettings.model_validate({"url": endpoint.url, "model": "m", "attempts": 2, **changes})


def test_verdicts_are_read_and_pinned(endpoint: Any, tmp_path: Path) -> None:
    cases = [("Q?", ["a", "b"], answer) for answer in REPLIES]
    found = Judge(settings(endpoint), tmp_path / "judge.sqlite").verdicts(cases)
    assert found[:3] == [Verdict(True), Verdict(False), Verdict(False)]
    assert found[3].correct is None and found[3].reason == "an answer in another form (neither yes nor no)"
    assert endpoint.keys == {"Bearer hush"} and len(endpoint.asked) == 3 + 2
    assert "Accepted answers: a; b" in endpoint.asked[0]
    again = Judge(settings(endpoint), tmp_path / "judge.sqlite").verdicts(cases[:3])
    assert again == found[:3] and len(endpoint.asked) == 5
    Judge(settings(endpoint, model="another"), tmp_path / "judge.sqlite").verdicts(cases[:1])
    assert len(endpoint.asked) == 6


def test_a_missing_key_is_an_error(endpoint: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("JUDGE_API_KEY")
    with pytest.raises(ConfigError, match=r"evaluation.judge needs a key.*JUDGE_API_KEY"):
        Judge(settings(endpoint), tmp_path / "judge.sqlite")


def scored(answer: str | None, em: float) -> Any:
    question = SimpleNamespace(text="Q?", answers=("a",))
    return SimpleNamespace(trajectory=SimpleNamespace(answer=answer, question=question), em=em)


def no_temperature(content: Any) -> str:
    return "'temperature' does not support 0; your key is hush" if "temperature" in content else ""


def test_a_model_without_a_temperature(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The endpoint's own reason is kept, without the key; nothing that was not measured has a value; null asks for none."""
    monkeypatch.setenv("JUDGE_API_KEY", "hush")
    with judging_server(lambda _: "yes", no_temperature) as server:
        strict = Judge(settings(server), tmp_path / "judge.sqlite")
        (verdict,) = strict.verdicts([("Q?", ["a"], "b")])
        assert verdict.correct is None
        assert verdict.reason == "status 400: \"'temperature' does not support 0; your key is ..\""
        assert judged_metrics(strict, [scored("b", 1.0)]) == {"judged_failed": 1.0}
        free = Judge(settings(server, temperature=None), tmp_path / "judge.sqlite")
        assert free.verdicts([("Q?", ["a"], "b")]) == [Verdict(True)]


def test_a_reply_in_parts_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All three right and all exact: chance agrees as well, so that kappa has no value."""
    monkeypatch.setenv("JUDGE_API_KEY", "hush")
    with judging_server(lambda _: [{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]) as server:
        judge = Judge(settings(server), tmp_path / "judge.sqlite")
        found = judged_metrics(judge, [scored(f"a{n}", 1.0) for n in range(3)])
    assert found == {"judged": 1.0, "judged_failed": 0.0, "judged_em_agreement": 1.0}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ([{"type": "output_text", "text": "yes"}], True),
        ([{"type": "thinking", "thinking": "no"}, {"type": "text", "text": "yes"}], True),
        ("\u25c1think\u25b7no, no\u25c1/think\u25b7yes", True),
        ("<thinking>yes?</thinking>No.", False),
        ("[THINK]yes[/THINK]no", False),
        ("no, though some say yes", False),
        ("Answer: Yes. There is no difference.", True),
        ("**The final verdict is: No** (not yes)", False),
        ("Yes or no? No.", False),
        ("<thought>yes</thought>no", False),
        ("<think>yes, or no", "a thought without its end"),  # cut by the endpoint's limit
        ("There is no doubt: yes", "both yes and no"),
        (None, "no choices[0].message.content"),
        ({"error": {"message": "model overloaded"}}, "no choices[0].message.content, but 'model overloaded'"),
        ({"choices": []}, "no choices[0].message.content"),
        ({"choices": [{"message": {"content": None, "refusal": "I cannot"}}]}, "the model refuses: 'I cannot'"),
    ],
)
def test_replies_of_other_endpoints_and_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: Any, verdict: bool | str
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "hush")
    with judging_server(lambda _: answer) as server:
        (found,) = Judge(settings(server, attempts=1), tmp_path / "judge.sqlite").verdicts([("Q?", ["a"], "b")])
    assert found.correct is (verdict if isinstance(verdict, bool) else None)
    assert isinstance(verdict, bool) or verdict in found.reason


def test_agreement_with_exact_match(endpoint: Any, tmp_path: Path) -> None:
    """Six trajectories: judge and EM say 1,1  1,0  0,0  0 (no answer),0, one cannot be judged, 0,1."""
    items = [scored("right", 1.0), scored("right", 0.0), scored("wrong", 0.0), scored(None, 0.0), scored("rambles", 0.0),
             scored("thinks", 1.0)]  # fmt: skip
    found = judged_metrics(Judge(settings(endpoint), tmp_path / "judge.sqlite"), items)
    # of five: judged right .4, exact .4, agreed .6; chance .4 x .4 + .6 x .6 = .52; kappa .08 / .48
    assert found == {
        "judged": pytest.approx(0.4),
        "judged_failed": pytest.approx(1 / 6),
        "judged_em_agreement": pytest.approx(0.6),
        "judged_em_kappa": pytest.approx(1 / 6),
    }
