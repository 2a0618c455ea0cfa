"""Flow `evaluate`: any checkpoint, folder or hub model on any split of a preset's data."""

from typing import Annotated, Literal

from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact
from pydantic import Field

from flows.parameters import Preset
from flows.presets import load_specification
from igpo_core.environments import open_environment
from tasks.home import home, open_home
from tasks.prefect_runs import run_log
from tasks.report.wording import literal, literal_rows
from tasks.runs.devices import borrowed_device
from tasks.tracking.mlflow_runs import log_evaluation


@flow(name="evaluate", flow_run_name="{model} on {split}", validate_parameters=True)
def evaluate(
    model: Annotated[str, Field(min_length=1)],
    preset: Preset,
    split: Literal["train", "dev", "test"] = "test",
    limit: Annotated[int | None, Field(ge=1)] = None,
    cell: str = "",
) -> dict[str, float]:
    """Evaluate with every decoding of the preset; metrics go to an MLflow run tagged kind=evaluation.

    Args:
        model: Checkpoint folder, run key (a folder's name in .igpo/runs), model folder or hub name.
        split: Which of the preset's questions.
        limit: Questions at most, from the table's beginning. Empty: all.
        cell: Whose settings, where the preset has factors. Empty: the first cell's.
    """
    from igpo_core.evaluation import decode_each  # torch and pandas take seconds
    from igpo_core.policies import load_policy
    from tasks.data.publishing import prepare
    from tasks.runs.stored_models import locate, metric_rows, require_vocabulary

    open_home()
    specification = load_specification(preset)
    experiment = specification.experiment(
        specification.baseline, specification.seeds[0], cell or specification.cells[0]
    )
    data = prepare(experiment.data, home())
    folder = locate(model, home())
    policy = load_policy(folder, experiment)
    environment = open_environment(experiment, data.folder)
    require_vocabulary(policy, environment, folder)
    questions = limit or len(environment.tasks(split))
    metrics: dict[str, float] = {}
    records = []
    with borrowed_device(experiment, run_log()) as place:
        policy.model.to(place)
        for prefix, result in decode_each(policy, environment, experiment, split, questions, 0):
            metrics |= {f"{split}{prefix}{name}": value for name, value in result.metrics.items()}
            records += result.records
        policy.model.to("cpu")
    url = log_evaluation(specification.name, folder, data.version, metrics, records)
    create_table_artifact(
        literal_rows(metric_rows(metrics, experiment.data.rubric)), description=f"{literal(model)} on {split}"
    )
    create_link_artifact(link=url, link_text="This evaluation in MLflow", description="Metrics and records in MLflow")
    score = metrics[f"{split}/all/{experiment.data.headline}"]
    run_log()(f"{folder} on {split}: {experiment.data.headline_title} {score:.3f}, {url}")
    return metrics
