"""What a user clicks: an ablation from Prefect's form with changed parameters, its artifacts, MLflow's curves, and back.

Screenshots lie in the folder that IGPO_SCREENSHOTS names, for people to look at (a temporary one by default)."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tasks.lab.prefect_runs import first_visit
from tests.e2e.conftest import Servers

pytestmark = [pytest.mark.night, pytest.mark.timeout(3600)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1500})
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def test_an_ablation_from_the_form_to_the_comparison_and_back(servers: Servers, page: Any, tmp_path: Path) -> None:
    shots = Path(os.environ.get("IGPO_SCREENSHOTS", tmp_path))
    ui = servers.environment["PREFECT_API_URL"].removesuffix("/api")

    def look(name: str) -> None:
        page.wait_for_timeout(2500)
        page.screenshot(path=str(shots / f"{name}.png"))

    page.goto(f"{ui}/deployments")
    page.locator("input[type=password]").fill(":".join(servers.account))  # once for this browser
    page.get_by_role("button").first.click()
    page.get_by_placeholder("Search deployments").wait_for()
    notices = page.locator(
        ".p-toast__close-btn"
    )  # of the visit before the account was entered; they stay, over the form
    while notices.count():
        notices.first.dispatch_event("click")  # its ring of time lies over it
        page.wait_for_timeout(500)
    page.get_by_placeholder("Search deployments").fill("tiny")
    page.get_by_role("link", name="tiny").first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").first.click()
    page.get_by_text("Only these arms, the baseline and the primary arm.").wait_for()  # the parameters are explained
    look("1-form")
    page.get_by_text("list", exact=True).nth(1).click()  # seeds
    page.get_by_role("button", name="Add item").first.click()
    page.locator("input[type=number]").first.fill("7")
    page.get_by_text("int", exact=True).first.click()  # processes
    page.locator("input[type=number]").nth(1).fill("1")
    look("2-form-filled")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_timeout(2000)

    asked = {"sort": "EXPECTED_START_TIME_DESC", "flow_runs": {"deployment_id": {"is_null_": False}}}
    runs = servers.ask("POST", "/flow_runs/filter", asked)
    (run,) = [run for run in runs if run["parameters"].get("seeds") == [7]]
    assert run["parameters"]["processes"] == 1
    page.goto(f"{ui}/runs/flow-run/{run['id']}")
    page.get_by_text("Completed", exact=True).first.wait_for(timeout=1_200_000)
    look("3-run")
    page.get_by_text("Artifacts", exact=True).first.click()
    page.get_by_text("The result as a table").wait_for()
    look("4-artifacts")
    page.get_by_text("Dev scores, turns and dead groups by arm, in MLflow").click()
    curves = page.get_by_role("link", name="Curves by arm in MLflow")
    curves.wait_for()
    look("5-artifact")

    page.goto(curves.get_attribute("href"))
    page.get_by_text("By arm: mean and range").wait_for()
    page.get_by_text("Group: igpo").first.wait_for()
    page.get_by_text("eval/all/f1").first.wait_for()  # charts come one by one
    page.get_by_text("2 matching runs").wait_for()
    look("6-curves")
    tracking = servers.environment["MLFLOW_TRACKING_URI"]
    experiments = httpx.post(f"{tracking}/api/2.0/mlflow/experiments/search", json={"max_results": 100}).json()[
        "experiments"
    ]
    study = next(item["experiment_id"] for item in experiments if item["name"] == "tiny")
    wanted = {"experiment_ids": [study], "filter": "tags.kind = 'train' and tags.seed = '7'"}
    found = httpx.post(f"{tracking}/api/2.0/mlflow/runs/search", json=wanted).json()["runs"]
    page.goto(f"{tracking}/#/experiments/{study}/runs/{found[0]['info']['run_id']}?workflowType=machine_learning")
    back = page.get_by_role("link", name="This run in Prefect")
    back.wait_for()
    look("7-mlflow-run")
    page.goto(back.get_attribute("href"))
    page.get_by_text(f"{found[0]['info']['run_name']}").first.wait_for()
    look("8-back-in-prefect")

    reports = {"experiment_ids": [study], "filter": "tags.kind = 'report' and tags.seeds = '7'"}
    (report,) = httpx.post(f"{tracking}/api/2.0/mlflow/runs/search", json=reports).json()["runs"]
    shown = f"runs/{report['info']['run_id']}/artifacts/report.html?workflowType=machine_learning"
    page.goto(f"{tracking}/#/experiments/{study}/{shown}")
    page.frame_locator("iframe").get_by_text("outcome_only").first.wait_for()
    look("9-report-in-mlflow")
    artifact = f"{tracking}/get-artifact?path=report.html&run_uuid={report['info']['run_id']}"
    (shots / "report.html").write_bytes(httpx.get(artifact).raise_for_status().content)
    page.goto(f"file://{(shots / 'report.html').resolve()}")
    page.get_by_role("heading", name="Trajectories").wait_for()
    page.locator("#filters select").first.select_option(index=1)
    page.locator("#one .turn").first.wait_for()
    look("10-report")


def test_the_link_that_a_terminal_shows_opens_in_a_fresh_browser(servers: Servers, page: Any) -> None:
    """The page itself says "Page not found" there until it is loaded again."""
    account = ":".join(servers.account)
    flow = servers.ask("POST", "/flows/", {"name": "looked-at"})["id"]
    asked = {"flow_id": flow, "name": "a-run-to-look-at", "state": {"type": "RUNNING"}}
    run = servers.ask("POST", "/flow_runs/", asked)["id"]
    with temporary_settings(
        {PREFECT_API_URL: servers.environment["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: account}
    ):
        link = first_visit(run)[0].removeprefix("Prefect  ")
    fresh = page.context.browser.new_context().new_page()
    fresh.set_default_timeout(120_000)
    fresh.goto(link)
    fresh.locator("input[type=password]").fill(account)
    fresh.get_by_role("button").first.click()
    fresh.get_by_text("a-run-to-look-at").first.wait_for()
    servers.ask("DELETE", f"/flow_runs/{run}")
