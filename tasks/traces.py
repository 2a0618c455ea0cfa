"""Trajectories as MLflow traces: an agent span, a span a turn with its beliefs, the gain as feedback on the turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class TurnRecord:
    """One turn. belief_before, belief_after: s_{t-1} and s_t; the last turn has no observation, belief_after or gain."""

    text: str
    action: Literal["search", "answer", "malformed"]
    query_or_answer: str | None
    observation: str | None
    belief_before: float
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


def log_traces(run_id: str, experiment_id: str, records: Sequence[TraceRecord]) -> list[str]:
    """One trace each, linked to the run. Returns their ids. About 0.4 s a trace: for a sample, off the hot path."""
    import mlflow

    from tasks.tracking import tracking_uri

    mlflow.set_tracking_uri(tracking_uri())
    mlflow.set_experiment(experiment_id=experiment_id)
    written = [_trace(run_id, record) for record in records]
    mlflow.flush_trace_async_logging()  # feedback can only be given on a trace that the server has
    for record, (trace_id, spans) in zip(records, written, strict=True):
        for number, (turn, span) in enumerate(zip(record.turns, spans, strict=True), start=1):
            if turn.gain is not None:
                mlflow.log_feedback(
                    trace_id=trace_id, name=f"information_gain_turn_{number}", value=turn.gain, span_id=span
                )
        mlflow.log_feedback(trace_id=trace_id, name="f1", value=record.f1)
        mlflow.log_expectation(trace_id=trace_id, name="answers", value=" | ".join(record.answers))
    return [trace_id for trace_id, _ in written]


def _trace(run_id: str, record: TraceRecord) -> tuple[str, list[str]]:
    import mlflow

    spans = []
    with mlflow.start_span(name=f"{record.arm} seed {record.seed}", span_type="AGENT") as root:
        root.set_inputs({"question": record.question})
        root.set_attributes({"question_id": record.question_id, "status": record.status, "em": record.em})
        for number, turn in enumerate(record.turns, start=1):
            with mlflow.start_span(name=f"turn {number}: {turn.action}", span_type=_span_type(turn)) as span:
                span.set_inputs({"policy": turn.text})
                span.set_outputs(
                    {"observation": turn.observation} if turn.observation else {turn.action: turn.query_or_answer}
                )
                span.set_attributes(_beliefs(turn))
                spans.append(span.span_id)
        root.set_outputs({"answer": record.turns[-1].query_or_answer, "status": record.status, "f1": record.f1})
        mlflow.update_current_trace(
            metadata={"mlflow.sourceRun": run_id},
            tags={"arm": record.arm, "seed": str(record.seed), "status": record.status},
        )
        return root.trace_id, spans


def _span_type(turn: TurnRecord) -> str:
    return "TOOL" if turn.observation is not None else "CHAIN"


def _beliefs(turn: TurnRecord) -> dict[str, Any]:
    values = {"belief_before": turn.belief_before, "belief_after": turn.belief_after, "information_gain": turn.gain}
    return {name: value for name, value in values.items() if value is not None}
