"""A comparison in a real MLflow: whatever models are called, and however many there are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import ExperimentConfig
from tasks.report.compared import Asked, Draw, compare
from tasks.report.compared_shown import draw, main_rows
from tasks.report.evaluated import Compared, Results, compared_of
from tasks.runs.candidates import Candidate
from tasks.runs.evaluations import DataSet, Measured, Unit
from tasks.tracking.evaluations import log_comparison
from tasks.tracking.server import client


@pytest.fixture
def published(tmp_path: Path) -> DataSet:
    from tasks.data.publishing import prepare

    config = ExperimentConfig()
    made = prepare(config.data, tmp_path)
    return DataSet("lookup", made.version, made.folder, config, "test", None, ())


def measured(data: DataSet, names: list[str]) -> tuple[Compared, Results]:
    """Each model has the score .1 x its place on one question."""
    results = []
    for place, name in enumerate(names, start=1):
        record: dict[str, Any] = {"id": "q", "source": "lookup", "hops": None, "f1": place / 10}
        unit = Unit(Candidate(name, name, f"w{place}"), data, "sampled", 0)
        results.append((unit, Measured({"all/f1": place / 10}, [record], "cpu")))
    return compared_of(results, frozenset({"lookup"}), 0.03), results


def logged(study: str, data: DataSet, names: list[str], links: list[tuple[str, str]]) -> Any:
    address = log_comparison(study, *measured(data, names), links)
    return client().get_run(address.split("/runs/")[1].partition("?")[0])


def test_whatever_models_are_called_their_numbers_reach_mlflow(mlflow_server: str, published: DataSet) -> None:
    """Names that MLflow refuses in a metric's name, of which two differ in characters alone that it takes in none."""
    names = ["/home/me/model", "./m", "a//b", "m?", "m*", "$\\x$", "long" * 100]
    run = logged("names", published, names, [])
    scores = {run.data.tags[f"model_{place}"]: run.data.metrics[f"model_{place}/score"] for place in range(1, 8)}
    assert scores == {name: pytest.approx(place / 10) for place, name in enumerate(names, start=1)}
    assert run.data.metrics["model_2/difference"] == pytest.approx(0.1) and run.info.status == "FINISHED"


def test_the_page_of_a_run_has_the_links_and_says_where_the_rest_is(mlflow_server: str, published: DataSet) -> None:
    names = [f"/data/models/of/somebody/{number:03d}" for number in range(30)]
    links = [(name, f"http://127.0.0.1/#/runs/{number}") for number, name in enumerate(names)]
    text = logged("many", published, names, links).data.tags["mlflow.note.content"]
    assert links[-1][1] in text and "comparison.md" in text and len(text) <= 8000


def test_a_note_says_what_did_not_fit() -> None:
    from tasks.report.compared_shown import note

    rows = [{"model": "m" * 50, "score": "0.1"}] * 4
    links = [f"- [run {number}](http://host/{number})" for number in range(40)]
    whole = note("study", "words", rows, links, 8000)
    assert "| model | score |" in whole and links[-1] in whole
    without = note("study", "words", rows, links, len(whole) - 1)
    assert "| model" not in without and "table is too long" in without and links[-1] in without
    short = note("study", "words", rows, links, 400)
    assert len(short) <= 400 and links[0] in short and links[-1] not in short and short.endswith("see comparison.md.\n")


@pytest.mark.parametrize("name", [r"$\x$", r"a$b", r"\$\frac$", "$$"])
def test_a_name_with_dollar_signs_is_drawn_as_it_is(tmp_path: Path, name: str) -> None:
    """matplotlib takes what stands between two of them for a formula."""
    first = Draw(name, None, 0, {("d", "q"): 0.1})
    scores = compare([first, replace(first, model=f"{name}2")], {("d", "q"): Asked(name, None)}, 0)
    draw(scores, {name}, "F1", tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 1000
    assert main_rows(scores, (), "F1")[0]["model"] == name
