"""Expert trajectories in the messages form: read as demonstrations, refused row by row with the message that does not fit."""

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from igpo_core.config import ExperimentConfig
from igpo_core.data.schema import DEFECT
from igpo_core.data.trajectories import load_trajectories, to_turns
from igpo_core.environments.base import DemonstrationTurn
from igpo_core.environments.searching import SEARCH, search_for
from igpo_core.errors import DataError
from igpo_core.trajectory import Final

USER = {"role": "user", "content": "Who wrote Faust?"}
REPLY = {"role": "tool", "content": "1. Faust: a play by Goethe."}
ANSWER = {"role": "assistant", "content": "Goethe"}


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "search", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        **more,
    }


WRITTEN = '<think>I look.</think>\n<tool_call>\n{"name": "search", "arguments": {"query": "Faust"}}\n</tool_call>'
SEARCHED = call('{"query": "Faust"}')


def load(folder: Path, *rows: Any) -> pandas.DataFrame:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_trajectories(path, SEARCH)


@pytest.mark.parametrize(
    "turn",
    [
        call('{"query": "Faust"}', reasoning_content="I look."),
        call({"query": "Faust"}, content="I look."),
        call({"query": "Faust"}, content="<think>\nI look.\n</think>"),
        {"role": "assistant", "content": WRITTEN},
        {"role": "assistant", "content": "I look.", "tool_calls": [{"name": "search", "arguments": {"query": "Faust"}}]},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "answer", ["Goethe", "<think>Now I know.</think><answer> Goethe </answer>", [{"type": "text", "text": "Goethe"}]]
)
def test_forms_that_people_have_are_one_demonstration(turn: dict[str, Any], answer: Any, tmp_path: Path) -> None:
    system = {"role": "system", "content": "You are somebody else's agent."}
    frame = load(tmp_path, {"messages": [system, USER, turn, REPLY, {"role": "assistant", "content": answer}]})
    assert frame[DEFECT].isna().all()
    assert frame[["id", "question", "answer"]].to_dict("records") == [
        {"id": "t.jsonl line 1", "question": "Who wrote Faust?", "answer": "Goethe"}
    ]
    thought = "Now I know." if "Now" in str(answer) else ""
    assert to_turns(frame["turns"][0]) == (
        DemonstrationTurn("I look.", search_for("Faust"), "1. Faust: a play by Goethe."),
        DemonstrationTurn(thought, Final("Goethe")),
    )


def test_nan_of_a_table_is_a_missing_field_of_a_message(tmp_path: Path) -> None:
    """pandas writes NaN where a message lacks a field that another one has."""
    nan = float("nan")
    turn = {**call({"query": "Faust", "title": nan}), "reasoning_content": nan}
    rows = {"id": "a", "messages": [{**USER, "tool_calls": nan}, turn, REPLY, {**ANSWER, "tool_calls": nan}]}
    frame = load(tmp_path, rows)
    assert frame[DEFECT].isna().all() and frame["answer"].tolist() == ["Goethe"]
    assert to_turns(frame["turns"][0])[0].action == search_for("Faust")


def test_parquet_with_every_argument_in_every_row(tmp_path: Path) -> None:
    """Arrow has one type for all messages: what a message lacks is null, and so is what only another tool takes."""
    rows = [{"id": "a", "messages": [USER, call({"query": "Faust", "title": None}), REPLY, ANSWER]}]
    pandas.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    frame = load_trajectories(tmp_path / "t.parquet", SEARCH)
    assert frame[DEFECT].isna().all() and frame["id"].tolist() == ["a"]
    assert to_turns(frame["turns"][0])[0].action == search_for("Faust")


@pytest.mark.parametrize(
    "value", [b"Faust", datetime.date(1808, 1, 1), datetime.datetime(1808, 1, 1), decimal.Decimal("1.5")]
)
@pytest.mark.parametrize("name", ["query", "other"])
def test_values_of_parquet_that_json_has_not_are_the_defect_of_their_row(value: Any, name: str, tmp_path: Path) -> None:
    odd = {"id": "odd", "messages": [USER, call({"query": "Faust", name: value}), REPLY, ANSWER]}
    pandas.DataFrame([odd]).to_parquet(tmp_path / "t.parquet")
    try:
        (defect,) = load_trajectories(tmp_path / "t.parquet", SEARCH)[DEFECT]
    except TypeError as error:
        defect = f"traceback: {error}"
    assert defect.startswith("messages[1]: a value of the tool call is none that JSON has")
    assert type(value).__name__ in defect and defect.endswith("write it as text [t.parquet row 1]")


@pytest.mark.parametrize(
    "turn",
    [
        call('{"query": "Faust"}', reasoning_content="I look.", content="Let me search."),
        call('{"query": "Faust"}', content="<think>I look.</think> Let me search."),
        {"role": "assistant", "content": WRITTEN.replace("<tool_call>", "Let me search.\n<tool_call>")},
    ],
)
def test_text_beside_a_call_is_kept_behind_the_reasoning(turn: dict[str, Any], tmp_path: Path) -> None:
    frame = load(tmp_path, {"messages": [USER, turn, REPLY, ANSWER]})
    assert frame[DEFECT].isna().all()
    assert to_turns(frame["turns"][0])[0].thought == "I look.\nLet me search."


two = {"role": "assistant", "content": "", "tool_calls": SEARCHED["tool_calls"] * 2}
other = {"role": "assistant", "tool_calls": [{"function": {"name": "browse", "arguments": {"url": "x"}}}]}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "messages: is missing"),
        ("hello", "messages: is str, not a list"),
        ([], "messages: do not end with a final answer"),
        ([USER, SEARCHED, REPLY], "messages: do not end with a final answer"),
        ([USER, SEARCHED], "messages: do not end with a final answer"),
        ([USER, SEARCHED, ANSWER], r"messages[2]: comes before a message of the role tool"),
        ([USER, REPLY, ANSWER], "messages[1]: answers no tool call"),
        ([SEARCHED, REPLY, ANSWER], "messages[0]: comes before the user's question"),
        ([USER, ANSWER, USER], "messages[2]: comes after the final answer"),
        (
            [USER, SEARCHED, REPLY, {"role": "system", "content": "Answer now."}, ANSWER],
            "messages[3]: is a system message behind the question",
        ),
        ([USER, SEARCHED, REPLY, USER, ANSWER], "messages[3]: is a second message of the user"),
        ([USER, {"role": "function", "content": "x"}], "messages[1]: has the role 'function', not one of system, user"),
        ([USER, "Goethe"], "messages[1]: has the role 'None'"),
        ([USER, two, REPLY, ANSWER], "messages[1]: there are 2 tool calls, and a turn makes one"),
        ([USER, other, REPLY, ANSWER], 'messages[1]: the tool call is not {"name": "search"'),
        ([USER, call("{query: Faust}"), REPLY, ANSWER], "messages[1]: the arguments of the tool call are not JSON"),
        ([USER, call({"query": ""}), REPLY, ANSWER], "messages[1]: the tool call has no query text"),
        ([USER, SEARCHED, {"role": "tool", "content": ""}, ANSWER], "messages[2]: is empty"),
        (
            [USER, SEARCHED, {"role": "tool", "content": [{"image": "x"}]}, ANSWER],
            "messages[2]: has a part that is no text",
        ),
        ([USER, {"role": "assistant", "content": " "}], "messages[1]: there is neither a tool call nor an answer"),
        (
            [USER, {"role": "assistant", "content": "<answer>a</answer> b"}],
            "messages[1]: the answer has a tag of the protocol",
        ),
        ([USER, call({"query": "x"}, content="</think> x")], "messages[1]: the thought has a tag of the protocol"),
        (
            [USER, call({"query": "x"}, reasoning_content="I look.", content="<think>x")],
            "messages[1]: the thought has a tag of the protocol",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_message_and_the_others_go_on(
    messages: Any, reason: str, tmp_path: Path
) -> None:
    good = {"id": "good", "messages": [USER, SEARCHED, REPLY, ANSWER]}
    frame = load(tmp_path, {"id": "bad", "messages": messages}, good)
    assert frame["id"].tolist() == ["bad", "good"]
    assert frame[DEFECT][0].startswith(reason) and frame[DEFECT][0].endswith("[t.jsonl line 1]")
    assert ";" not in frame[DEFECT][0].removeprefix(reason), "one reason, the first"
    assert pandas.isna(frame[DEFECT][1])


def test_a_warm_start_asks_for_trajectories_only_where_there_are_some() -> None:
    demonstrations = {"kind": "files", "use": "trajectories"}
    stage = {"steps": 1, "learning_rate": 1e-3, "demonstrations": demonstrations}
    content = {
        "data": {"kind": "files", "questions": [{"path": "q"}], "corpus": ["c"]},
        "policy": {"kind": "pretrained", "name": "a/b"},
        "warm_start": {"stages": [stage]},
    }
    with pytest.raises(ValueError, match="stage 1 has use: trajectories, and data"):
        ExperimentConfig.model_validate(content)
    ExperimentConfig.model_validate({**content, "data": {**content["data"], "trajectories": ["t"]}})  # type: ignore[dict-item]


def test_a_file_without_messages_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="messages"):
        load(tmp_path, {"conversations": []})
