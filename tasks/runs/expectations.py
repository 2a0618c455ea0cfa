"""What was expected of a run (`expect`), validated by Great Expectations on its table of metrics, as Data Docs in its folder."""

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from igpo_core.config import Expectation
from igpo_core.folders import fill_folder
from tasks.runs.planned import Run, Say
from tasks.tracking.outbox import DATA_DOCS, METRICS_FILE, read_lines

NAME = "run"  # of suite and table
Metrics = Mapping[int, Mapping[str, float]]  # of a run, by step


def tell_expectations(run: Run, say: Say) -> None:
    """write_data_docs, at a run's end. A fault of it is told: the run has its result, or an error of its own, all the same."""
    try:
        write_data_docs(run, say)
    except Exception as error:
        say(
            f"warning: no Data Docs of what was expected of this run, which changes nothing of how it ended: "
            f"{type(error).__name__}: {error}"
        )


def write_data_docs(run: Run, say: Say) -> None:
    """Validate the run's metrics as its folder has them, and put Data Docs there; nothing where nothing was expected.

    Raises DataError on a damaged line of metrics, OSError where the folder cannot be written.
    """
    expected = run.spec.experiment.expect
    if not expected:
        return
    metrics = metrics_of(run.folder)
    if not metrics:
        return
    with tempfile.TemporaryDirectory() as temporary:
        docs = Path(temporary) / DATA_DOCS
        write_pages_of(metrics, expected, docs)
        fill_folder(run.folder / DATA_DOCS, lambda folder: _copy(docs, folder))
    unmet = {one: sum(not one.met(step, values) for step, values in metrics.items()) for one in expected}
    counts = [f"{one.told} ({steps} steps)" for one, steps in unmet.items() if steps]
    say(
        f"expectations: {len(expected) - len(counts)} of {len(expected)} met"
        + (f"; not {'; '.join(counts)}" if counts else "")
        + f". Data Docs: {run.folder / DATA_DOCS / 'index.html'}"
    )


def metrics_of(folder: Path) -> Metrics:
    """Return the metrics of a run's folder by step."""
    steps: dict[int, dict[str, float]] = {}
    for line in read_lines(folder / METRICS_FILE, 0)[0]:
        steps.setdefault(line["step"], {}).update(line["metrics"])
    return dict(sorted(steps.items()))


def write_pages_of(metrics: Metrics, expected: Sequence[Expectation], data_docs: Path) -> None:
    """Write Data Docs of a run's metrics. Each expectation has two columns of its own: whether a value is finite, and, with
    bounds, the finite value; both null in steps that are not looked at or have no such metric."""
    from tasks.data.data_docs import literal, open_context, write_pages  # Great Expectations takes seconds

    context = open_context()
    import great_expectations as gx
    from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
    from great_expectations.expectations.metadata_types import FailureSeverity

    columns: dict[str, Any] = {"step": list(metrics)}
    rules: list[Any] = []
    for one in expected:
        seen = [
            values[one.metric] if step >= one.first_step and one.metric in values else None
            for step, values in metrics.items()
        ]
        severity = FailureSeverity.CRITICAL if one.otherwise == "stop" else FailureSeverity.WARNING
        finite, bounded = (literal(name) for name in (f"{one.told}: finite", one.told))
        columns[finite] = [None if value is None else int(math.isfinite(value)) for value in seen]
        rules.append(ExpectColumnValuesToBeBetween(column=finite, min_value=1, max_value=1, severity=severity))
        if one.least is not None or one.most is not None:
            columns[bounded] = [value if value is not None and math.isfinite(value) else None for value in seen]
            bounds: dict[str, Any] = {"min_value": one.least, "max_value": one.most}
            rules.append(ExpectColumnValuesToBeBetween(column=bounded, **bounds, severity=severity))
    batch = context.data_sources.add_pandas(NAME).add_dataframe_asset(NAME).add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(name=NAME, expectations=rules))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=NAME, data=batch, suite=suite))
    checkpoint = gx.Checkpoint(
        name=NAME,
        validation_definitions=[definition],
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["step"]},
    )
    import pandas

    table = pandas.DataFrame({name: pandas.Series(values, dtype="float64") for name, values in columns.items()})
    context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": table})
    write_pages(context, data_docs)


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)
