"""Flow `evaluate`: any models on any data sets, compared question by question and seed by seed."""

import time
from typing import TYPE_CHECKING, Annotated, Literal

from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.runtime import flow_run
from prefect.utilities.annotations import quote
from pydantic import Field

from flows.parameters import Changes, Preset, Seeds
from tasks.lab.home import home, open_home
from tasks.lab.prefect_runs import RunPage, Say, run_log
from tasks.lab.terminal import hush_tasks
from tasks.measure import log_to_mlflow, measure_model
from tasks.runs.asked import Asked, plan_evaluation

if TYPE_CHECKING:
    from tasks.report.evaluated import Compared, Results

Name = Annotated[str, Field(min_length=1)]
Names = Annotated[list[Name], Field(min_length=1)]


def run_name() -> str:
    """Return the models and the split."""
    models = flow_run.parameters["model"]
    return f"{models if isinstance(models, str) else ', '.join(models)} on {flow_run.parameters['split']}"[:200]


@flow(name="evaluate", flow_run_name=run_name, validate_parameters=True)
def evaluate(
    model: Name | Names,
    preset: Preset,
    split: Literal["train", "dev", "test"] = "test",
    limit: Annotated[int | None, Field(ge=1)] = None,
    cell: str = "",
    data: Annotated[list[Preset] | None, Field(min_length=1)] = None,
    sources: Names | None = None,
    seeds: Seeds | None = None,
    set: Changes = None,
) -> dict[str, float]:
    """Compare models on the same questions. What is measured is kept, and a second start goes on. Returns the metrics, means over
    seeds, with the model's name before them where there are several.

    Args:
        model: One or several. The others are compared with the first. A run key, or sweep:/<sweep>, each with @last, @best or
            @start; models:/<name>@<alias>; base (the policy before any training); a checkpoint or model folder; a hub name.
        preset: Whose policy settings, rollouts and margin.
        split: Which of the questions.
        limit: Questions at most of each source, from the table's beginning. Empty: all.
        cell: Whose settings, where the preset has factors. Empty: the first cell's.
        data: Presets or specifications whose questions are asked. Empty: the preset's own.
        sources: These sources of the questions alone. Empty: all.
        seeds: Sampling seeds. Empty: the first three of the preset's seeds.
    """
    open_home()
    say = run_log()
    hush_tasks()
    models = [model] if isinstance(model, str) else model
    return compare_models(plan_evaluation(models, preset, split, limit, cell, data, sources, seeds, set, say), say)


def compare_models(asked: Asked, say: Say) -> dict[str, float]:
    """Measure, compare, log and show what was asked, within a flow run. Returns the metrics."""
    from tasks.report.evaluated import compared_of, metrics_of

    results = measure_all(asked, say)
    compared = compared_of(results, asked.environments.trained_on(), asked.specification.margin)
    url = log_to_mlflow(asked.specification.name, compared, quote(results))
    show(compared, url, say)
    return metrics_of(results)


def measure_all(asked: Asked, say: Say) -> "Results":
    """Measure what is not there, a task for each set of weights, and tell how far it is. Returns everything."""
    from tasks.runs.evaluations import missing, results_of
    from tasks.runs.planning import spell

    total, new = len(asked.units), len(missing(asked.units, home()))
    say(f"{total - new} of {total} measurements were there")
    page, started = RunPage("measurements", total, say), time.monotonic()
    for units in asked.by_model:
        if not missing(units, home()):
            continue
        measure_model(units[0].model.title, quote((units, asked.environments, say)))
        left = len(missing(asked.units, home()))
        seconds = (time.monotonic() - started) / max(1, new - left) * left
        say(f"{units[0].model.title}: {total - left} of {total} · about {spell(seconds)} left")
        page.report(total - left)
    page.close()
    return results_of(asked.units, home())


def show(compared: "Compared", url: str, say: Say) -> None:
    """Show the comparison in the log and on the page of the flow run in Prefect."""
    from tasks.report.compared_shown import terminal
    from tasks.report.wording import literal, literal_rows

    say(f"\n{terminal(compared.rows, compared.words)}\n\nMLflow   {url}")
    create_table_artifact(literal_rows(compared.rows), description=literal(compared.words.splitlines()[0]))
    create_link_artifact(link=url, link_text="This comparison in MLflow", description="Tables, figure and runs")
