"""Trajectories as MLflow traces: an agent span, a span a turn with its beliefs, the gain as feedback on the turn."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from igpo_core.config import fingerprint
from tasks.tracking.server import MlflowAway, client, find_traces, tracking_uri

LONGEST_TAG = 250  # characters; MLflow cuts a trace's tag at 4,096 or less, by its store


@dataclass(frozen=True)
class TurnRecord:
    """One turn. belief_before, belief_after: s_{t-1} and s_t, log-probabilities of the gold answer; gain: g_t.

    None: not scored. advantage: A_t, of training trajectories alone.
    The last turn has no observation, hence neither belief_after nor gain.
    """

    text: str
    action: str
    """Name of the tool that was called, or "answer" or "malformed"."""
    content: str | None
    """Arguments of the call, or the answer."""
    observation: str | None
    belief_before: float | None
    belief_after: float | None
    gain: float | None
    advantage: float | None = None


@dataclass(frozen=True)
class TraceRecord:
    """One trajectory for people to read."""

    question_id: str
    question: str
    answers: tuple[str, ...]
    turns: tuple[TurnRecord, ...]
    status: str
    scores: Mapping[str, float]
    """The rubric, the headline first."""
    arm: str
    seed: int
    split: str = "test"
    step: int = 0

    @property
    def answer(self) -> str | None:
        """What was answered; None where the last turn is no answer."""
        last = self.turns[-1]
        return last.content if last.action == "answer" else None

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "TraceRecord":
        """The inverse of dataclasses.asdict and JSON."""
        turns = tuple(TurnRecord(**turn) for turn in entry["turns"])
        return cls(**{**entry, "answers": tuple(entry["answers"]), "turns": turns})


def log_traces(run_id: str, experiment_id: str, records: Sequence[TraceRecord]) -> list[str]:
    """One trace each, associated with the run; a question that the run has a whole trace of already is left alone.

    Returns the ids of the new traces. For a sample, off the hot path. Raises MlflowAway when some did not arrive whole:
    MLflow sends traces and their spans from threads of its own, which drop what a server does not take.
    """
    # its queue is polled once a second, for which every run would wait at its end
    os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    missing = _missing(run_id, experiment_id, records)
    written = [_trace(run_id, experiment_id, record) for record in missing]
    if written:
        lost = _missing(run_id, experiment_id, records)
        if lost:
            raise MlflowAway(f"MLflow at {tracking_uri()} did not take the traces of {len(lost)} questions")
    return written


def _missing(run_id: str, experiment_id: str, records: Sequence[TraceRecord]) -> list[TraceRecord]:
    """Records that the run has no whole trace of: a span a turn and one for all. Traces cut off on the way are deleted."""
    whole_ids = {tag_of(record.question_id): record.question_id for record in records}
    spans = {record.question_id: 1 + len(record.turns) for record in records}
    whole, broken = set(), []
    for trace in find_traces(experiment_id, run_id, spans=True):
        question = whole_ids.get(trace.info.tags.get("question_id", ""), "")
        if question in spans and len(trace.data.spans) == spans[question]:
            whole.add(question)
        else:
            broken.append(trace.info.trace_id)
    if broken:
        client().delete_traces(experiment_id, trace_ids=broken)
    return [record for record in records if record.question_id not in whole]


def tag_of(question_id: str) -> str:
    """Return the question's tag on its trace: the id, or its start and a hash of it where MLflow would cut it. Two ids that
    begin alike stay two."""
    if len(question_id) <= LONGEST_TAG:
        return question_id
    return f"{question_id[:200]}… {fingerprint(question_id)}"


def _trace(run_id: str, experiment_id: str, record: TraceRecord) -> str:
    """The trace's id. Feedback given while a trace is open travels with it instead of in a request of its own."""
    import mlflow
    from mlflow.entities import AssessmentSource, AssessmentSourceType
    from mlflow.entities.trace_location import MlflowExperimentLocation

    code = AssessmentSource(AssessmentSourceType.CODE, "igpo_core")
    person = AssessmentSource(AssessmentSourceType.HUMAN, "question table")
    with mlflow.start_span(
        name=f"{record.arm} seed {record.seed}",
        span_type="AGENT",
        attributes={"question_id": record.question_id, "turns": len(record.turns)},
        trace_destination=MlflowExperimentLocation(experiment_id),
        run_id=run_id,
    ) as root:
        tags = {
            "question_id": tag_of(record.question_id),
            "arm": record.arm,
            "seed": str(record.seed),
            "status": record.status,
        }
        mlflow.update_current_trace(tags=tags)
        root.set_inputs({"question": record.question})
        for number, turn in enumerate(record.turns, start=1):
            span_id = _turn(number, turn)
            if turn.gain is not None:
                mlflow.log_feedback(
                    trace_id=root.trace_id,
                    name="information_gain",
                    value=turn.gain,
                    span_id=span_id,
                    source=code,
                    rationale=f"turn {number}: {turn.content}",
                )
        headline, score = next(iter(record.scores.items()))
        mlflow.log_feedback(trace_id=root.trace_id, name=headline, value=score, source=code)
        answers = list(record.answers)
        mlflow.log_expectation(trace_id=root.trace_id, name="answers", value=answers, source=person)
        root.set_outputs({"answer": record.answer, "status": record.status, **record.scores})
    return str(root.trace_id)


def _turn(number: int, turn: TurnRecord) -> str:
    """The span id of a turn within the open trace."""
    import mlflow

    values: dict[str, Any] = {
        "belief_before_nats": turn.belief_before,
        "belief_after_nats": turn.belief_after,
        "gain": turn.gain,
        "advantage": turn.advantage,
    }
    with mlflow.start_span(
        name=f"turn {number}: {turn.action}" + ("" if turn.gain is None else f", gain {turn.gain:+.2f}"),
        span_type="CHAIN" if turn.action in ("answer", "malformed") else "TOOL",
        attributes={name: value for name, value in values.items() if value is not None},
    ) as span:
        span.set_inputs({"policy": turn.text, turn.action: turn.content})
        span.set_outputs({"observation": turn.observation})
    return str(span.span_id)
