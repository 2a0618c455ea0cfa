"""The lines of a terminal that lead to a run's page in Prefect."""

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tasks.lab.account import make_account
from tasks.lab.prefect_runs import first_visit, flow_run_url


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("IGPO_HOME", str(tmp_path / "a home"))
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    return make_account(tmp_path / "a home")


def lines(account: str) -> list[str]:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4200/api", PREFECT_API_AUTH_STRING: account}):
        assert flow_run_url("one") == "http://127.0.0.1:4200/runs/flow-run/one"  # of pages that know the account
        return first_visit("one")


def test_a_browser_that_does_not_know_the_account_comes_by_way_of_the_login(account: str, tmp_path: Path) -> None:
    assert lines(account) == [
        "Prefect  http://127.0.0.1:4200/login?redirect=/runs/flow-run/one",
        f"Account  cat '{tmp_path}/a home/account'; a browser that knows it opens http://127.0.0.1:4200/runs/flow-run/one",
    ]


def test_the_account_of_another_server_is_not_in_our_file(account: str) -> None:
    assert lines("somebody:else") == [
        "Prefect  http://127.0.0.1:4200/login?redirect=/runs/flow-run/one",
        "Account  a browser that knows it opens http://127.0.0.1:4200/runs/flow-run/one",
    ]


def test_a_server_without_an_account_shows_the_page_at_once(account: str) -> None:
    assert lines("") == ["Prefect  http://127.0.0.1:4200/runs/flow-run/one"]
