"""Trajectories as MLflow traces: an agent span, a span a turn with its beliefs, the gain as feedback on the turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mlflow.entities import LiveSpan


@dataclass(frozen=True)
class TurnRecord:
    """One turn. belief_before, belief_after: s_{t-1} and s_t, log-probabilities of the gold answer; gain: g_t.

    None: not scored. The last turn has no observation, hence neither belief_after nor gain.
    """

    text: str
    action: Literal["search", "answer", "malformed"]
    query_or_answer: str | None
    observation: str | None
    belief_before: float | None
    belief_after: float | None
    gain: float | None


@dataclass(frozen=True)
class TraceRecord:
    """One trajectory for people to read."""

    question_id: str
    question: str
    answers: tuple[str, ...]
    turns: tuple[TurnRecord, ...]
    status: str
    f1: float
    em: float
    arm: str
    seed: int

    @property
    def answer(self) -> str | None:
        """What was answered; None where the last turn is no answer."""
        last = self.turns[-1]
        return last.query_or_answer if last.action == "answer" else None


def log_traces(run_id: str, experiment_id: str, records: Sequence[TraceRecord]) -> list[str]:
    """One trace each, associated with the run; a question that the run has a trace of already is left alone.

    Returns the ids of the new traces. About 0.4 s a trace: for a sample, off the hot path.
    """
    import mlflow
    from mlflow.entities import AssessmentSource, AssessmentSourceType

    from tasks.tracking import client, tracking_uri

    mlflow.set_tracking_uri(tracking_uri())
    logged = client().search_traces(run_id=run_id, locations=[experiment_id], max_results=500, include_spans=False)
    known = {trace.info.tags.get("question_id") for trace in logged}
    fresh = [record for record in records if record.question_id not in known]
    written = [_trace(run_id, experiment_id, record) for record in fresh]
    mlflow.flush_trace_async_logging()  # feedback can only be given on a trace that the server has
    code = AssessmentSource(AssessmentSourceType.CODE, "igpo_core")
    person = AssessmentSource(AssessmentSourceType.HUMAN, "question table")
    for record, (trace_id, spans) in zip(fresh, written, strict=True):
        for number, (turn, span_id) in enumerate(zip(record.turns, spans, strict=True), start=1):
            if turn.gain is not None:
                mlflow.log_feedback(
                    trace_id=trace_id,
                    name="information_gain",
                    value=turn.gain,
                    span_id=span_id,
                    source=code,
                    rationale=f"turn {number}: {turn.query_or_answer}",
                )
        mlflow.log_feedback(trace_id=trace_id, name="f1", value=record.f1, source=code)
        mlflow.log_expectation(trace_id=trace_id, name="answers", value=list(record.answers), source=person)
    return [trace_id for trace_id, _ in written]


def _trace(run_id: str, experiment_id: str, record: TraceRecord) -> tuple[str, list[str]]:
    """The trace's id, and the span id of each turn."""
    import mlflow
    from mlflow.tracing.constant import TraceMetadataKey

    root = mlflow.start_span_no_context(
        name=f"{record.arm} seed {record.seed}",
        span_type="AGENT",
        inputs={"question": record.question},
        tags={
            "question_id": record.question_id,
            "arm": record.arm,
            "seed": str(record.seed),
            "status": record.status,
        },
        metadata={TraceMetadataKey.SOURCE_RUN: run_id},
        experiment_id=experiment_id,
    )
    spans = [_turn(root, number, turn) for number, turn in enumerate(record.turns, start=1)]
    root.set_attributes({"question_id": record.question_id, "turns": len(spans)})
    root.end(outputs={"answer": record.answer, "status": record.status, "f1": record.f1, "em": record.em})
    return root.trace_id, spans


def _turn(root: "LiveSpan", number: int, turn: TurnRecord) -> str:
    import mlflow

    span = mlflow.start_span_no_context(
        name=f"turn {number}: {turn.action}",
        span_type="TOOL" if turn.action == "search" else "CHAIN",
        parent_span=root,
        inputs={"policy": turn.text, turn.action: turn.query_or_answer},
    )
    values: dict[str, Any] = {
        "belief_before": turn.belief_before,
        "belief_after": turn.belief_after,
        "information_gain": turn.gain,
    }
    span.set_attributes({name: value for name, value in values.items() if value is not None})
    span.end(outputs={"observation": turn.observation})
    return span.span_id
