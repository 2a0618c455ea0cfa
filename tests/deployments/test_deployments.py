"""prefect.yaml, automations, pool templates, compose: what can be seen without running them (tests/e2e runs them)."""

import inspect
import json
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployments import registration
from deployments.registration import ARMS_POOL, NODES_POOL, POOL, SWEEPS_QUEUE
from flows.ablation import ablation
from flows.children import DEPLOYMENTS
from flows.evaluate import evaluate
from flows.join import join
from flows.night import load_study, night
from flows.prepare_data import prepare_data
from flows.train import train, train_planned, warm_start
from igpo_core.errors import ConfigError
from tasks.specification.presets import load_specification

ROOT = Path(__file__).resolve().parents[2]
FLOWS = {
    flow.fn.__name__: flow for flow in (ablation, evaluate, join, night, prepare_data, train, train_planned, warm_start)
}
ENTRIES: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def flow_of(entry: dict[str, Any]) -> Any:
    return FLOWS[entry["entrypoint"].split(":")[1]]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e['entrypoint'].split(':')[1]}/{e['name']}")
def test_a_deployment_has_parameters_of_its_flow_and_words(entry: dict[str, Any]) -> None:
    assert entry["description"] and entry["tags"]
    known = inspect.signature(flow_of(entry).fn).parameters
    given = entry.get("parameters", {})
    assert set(given) <= set(known)
    if "preset" in given:
        specification = load_specification(given["preset"]).select(given.get("arms"), given.get("seeds"))
        if "arm" in given:
            specification.experiment(given["arm"], given["seed"])


def test_sweeps_share_one_queue_and_arms_have_a_pool_of_their_own() -> None:
    """A sweep that waits for arms must not hold a slot that they need."""
    for entry in ENTRIES:
        if flow_of(entry) in (ablation, night):
            assert entry["work_pool"] == {"name": POOL, "work_queue_name": SWEEPS_QUEUE}
        elif entry["name"] == "arms":
            assert entry["work_pool"] == {"name": ARMS_POOL}
        elif entry["name"] == "nodes":
            assert entry["work_pool"] == {"name": NODES_POOL}
        else:
            assert entry["work_pool"] == {"name": POOL}
    names = {f"{flow_of(entry).name}/{entry['name']}" for entry in ENTRIES}
    assert set(DEPLOYMENTS.values()) <= names and POOL != ARMS_POOL


def test_the_night_is_a_study_that_can_be_one() -> None:
    """Its settings are those of the deployment over the flow's own; it runs on a schedule."""
    (entry,) = [entry for entry in ENTRIES if flow_of(entry) is night]
    defaults = {name: parameter.default for name, parameter in inspect.signature(night.fn).parameters.items()}
    given = {**defaults, **entry["parameters"]}
    request, study = load_study(given["preset"], given["seeds"], given["seeds_a_night"], given["check_seeds"])
    assert len(study.seeds) == given["seeds"] and list(study.seeds) == request.specification.seeds
    assert [schedule["cron"] for schedule in entry["schedules"]] == ["0 2 * * *"]


def test_a_night_is_started_again_after_a_crash_like_a_sweep() -> None:
    content = yaml.safe_load((ROOT / "deployments" / "automations" / "go-on-after-a-crash.yaml").read_text())
    (flows,) = [entry for entry in content["trigger"]["match_related"] if entry["prefect.resource.role"] == "flow"]
    assert flows["prefect.resource.name"] == [ablation.name, night.name]


def test_the_forms_explain_every_parameter() -> None:
    for flow in FLOWS.values():
        for name, field in flow.parameters.properties.items():
            assert field.get("description"), (flow.name, name)


@pytest.mark.parametrize(
    ("flow", "given", "reason"),
    [
        (train, {"preset": "nope", "arm": "igpo"}, "'preset'.*'nope' does not match.*outcome-vs-igpo"),
        (evaluate, {"preset": "outcome-vs-igp", "model": "m"}, "'preset'.*does not match"),
        (ablation, {"seeds": [0, 0]}, "'seeds'.*non-unique"),
        (ablation, {"seeds": [-1]}, "-1 is less than the minimum of 0"),
        (ablation, {"arms": []}, "'arms'"),
    ],
)
def test_the_server_refuses_before_a_run_exists(flow: Any, given: dict[str, Any], reason: str) -> None:
    """`preset: nope` was accepted, and failed half a minute later."""
    from prefect.utilities.schema_tools.validation import ValidationError, validate

    def asked(**parameters: Any) -> None:
        validate(parameters, flow.parameters.model_dump(), raise_on_error=True, ignore_required=True)

    with pytest.raises(ValidationError, match=reason):
        asked(**given)
    asked(**{name: value for name, value in given.items() if name not in ("seeds", "arms")} | {"preset": "mine.yaml"})
    asked(preset="tiny")


def test_the_form_lists_the_arms_of_each_preset() -> None:
    for told in (
        train.parameters.properties["arm"]["description"],
        ablation.parameters.properties["arms"]["description"],
    ):
        for path in (ROOT / "deployments" / "presets").glob("*.yaml"):
            assert path.stem in told and set(load_specification(path.stem).arms) <= set(re.findall(r"[^\s,.:]+", told))
    for flow in (train, ablation):
        assert '{"optimizer.learning_rate": 1e-5' in flow.parameters.properties["set"]["description"]


def test_an_error_of_ours_is_logged_without_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was wrong ended in two tracebacks of twenty lines each."""
    logger, records = logging.getLogger("prefect.flow_runs"), list[logging.LogRecord]()
    keeping = logging.Handler()
    monkeypatch.setattr(keeping, "emit", records.append)
    monkeypatch.setattr(logger, "handlers", [keeping])
    for error in (ConfigError("unknown arm nonsense"), ZeroDivisionError("a fault")):
        try:
            raise error
        except Exception as raised:
            logger.exception("Encountered exception during execution: %r", raised)
    ours, fault = records
    assert "unknown arm nonsense" in ours.getMessage() and ours.exc_info is None
    assert fault.exc_info and fault.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("path", sorted((ROOT / "deployments" / "automations").glob("*.yaml")), ids=lambda p: p.stem)
def test_an_automation_is_one(path: Path) -> None:
    from prefect.events.schemas.automations import AutomationCore

    automation = AutomationCore.model_validate(yaml.safe_load(path.read_text()))
    assert automation.name.startswith("igpo") and automation.description
    assert automation.enabled != path.stem.startswith("example")


@pytest.mark.parametrize("path", sorted((ROOT / "deployments" / "pools").glob("*.json")), ids=lambda p: p.stem)
def test_a_pool_template_declares_what_it_uses(path: Path) -> None:
    template = json.loads(path.read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    declared = template["variables"]["properties"]
    assert used == set(declared)
    assert all(field["description"] for field in declared.values())


def test_compose_binds_to_this_machine_and_keeps_no_secret() -> None:
    text = (ROOT / "deployments" / "compose" / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name or "SECRET" in name or "AUTH_STRING" in name:
                assert value.startswith("${"), name
    empty = (ROOT / "deployments" / "compose" / "example.env").read_text().splitlines()
    assert all(line.startswith("#") or line.endswith("=") for line in empty)


def test_the_image_has_the_extras_that_presets_need() -> None:
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert "-r requirements.lock" in (ROOT / "deployments" / "compose" / "Dockerfile").read_text()
    said = "\n".join(path.read_text() for path in (ROOT / "deployments" / "presets").glob("*.yaml"))
    needed = {extra for extra, sign in (("lora", "lora:"), ("dense", "kind: dense"), ("gguf", ".gguf")) if sign in said}
    # each extra by a package of it; psycopg2-binary is of the extra server
    assert needed == {"lora", "dense", "gguf"} and {"peft", "faiss-cpu", "gguf", "psycopg2-binary"} <= locked


def test_kubernetes_jobs_can_ask_for_gpus() -> None:
    """Filled in as Prefect does it: none unless asked for, a number where it is."""
    from prefect.utilities.templating import apply_values

    template = json.loads((ROOT / "deployments" / "pools" / "kubernetes.json").read_text())
    defaults = {name: given.get("default") for name, given in template["variables"]["properties"].items()}
    for asked, limit in (({}, 0), ({"gpus": 8}, 8)):
        filled: Any = apply_values(template["job_configuration"], {**defaults, **asked})
        (container,) = filled["job_manifest"]["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": limit}


# ------------------------------------------------------------------------------------ what earlier versions registered


def api_of(answers: dict[str, Any], asked: list[tuple[str, str, Any]]) -> httpx.Client:
    """A Prefect server of these answers by path; other paths are not found. asked: what was to be changed."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method != "GET":
            body = json.loads(request.content) if request.content else None
            asked.append((request.method, request.url.path, body))
            return httpx.Response(204)
        known = answers.get(request.url.path)
        return httpx.Response(404) if known is None else httpx.Response(200, json=known)

    return httpx.Client(base_url="http://127.0.0.1", transport=httpx.MockTransport(answer))


NIGHTLY = {
    "id": "7",
    "entrypoint": "flows/ablation.py:ablation",
    "description": "outcome-vs-igpo with two seeds, every night at 02:00 UTC; what is finished and unchanged is reused.",
    "parameters": {"preset": "outcome-vs-igpo", "seeds": [0, 1]},
    "tags": ["lookup", "ablation", "scheduled"],
    "schedules": [{"id": "8", "schedule": {"cron": "0 2 * * *", "timezone": "UTC", "day_or": True}, "active": True}],
    "paused": False,
}
HOURLY = [{"id": "8", "schedule": {"cron": "0 * * * *", "timezone": "UTC"}, "active": True}]


@pytest.mark.parametrize(
    ("changed", "goes"),
    [
        ({}, True),
        ({"paused": True}, True),
        ({"description": "outcome-vs-igpo every night at 02:00 UTC; what is finished and unchanged is reused.",
          "parameters": {"preset": "outcome-vs-igpo"}}, True),
        ({"description": "My own nights."}, False),
        ({"description": None}, False),
        ({"parameters": {"preset": "mine.yaml"}}, False),
        ({"entrypoint": "mine.py:ablation"}, False),
        ({"tags": []}, False),
        ({"schedules": HOURLY}, False),
        ({"schedules": []}, False),
        ({"schedules": [{"schedule": {"interval": 60.0}}]}, False),
    ],
)  # fmt: skip
def test_a_deployment_goes_where_an_earlier_version_made_it_and_nobody_changed_it(
    changed: dict[str, Any], goes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str, Any]] = []
    with api_of({"/deployments/name/ablation/nightly": {**NIGHTLY, **changed}}, asked) as api:
        registration.retire(api, "ablation/nightly")
        registration.retire(api, "ablation/weekly")  # there is none
    assert asked == ([("DELETE", "/deployments/7", None)] if goes else [])
    assert ("deleted" if goes else "yours, stays") in capsys.readouterr().out


def of_a_server(automation: dict[str, Any]) -> dict[str, Any]:
    """As Prefect 3.8.8 answered: with ids, times and defaults, what was a set in any order."""
    trigger = {
        "id": "1",
        "match_related": {},
        "after": [],
        "for_each": [],
        "posture": "Reactive",
        **automation["trigger"],
    }
    trigger = {**trigger, "expect": trigger["expect"][::-1], "within": float(trigger["within"])}
    actions = [{"name": None, "force": False, **action} for action in automation["actions"]]
    times = {"created": "2026-11-27T08:59:57Z", "updated": "2026-11-27T09:00:00Z"}
    return {"enabled": True, **automation, "trigger": trigger, "actions": actions, "id": "9", "tags": [], **times}


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("path", sorted(registration.EARLIER.glob("*.yaml")), ids=lambda p: p.stem)
def test_an_automation_of_an_earlier_version_gets_this_ones_form_and_keeps_its_switch(
    path: Path, enabled: bool
) -> None:
    earlier = yaml.safe_load(path.read_text())
    now = yaml.safe_load((path.parents[1] / f"{path.stem[:-2]}.yaml").read_text())
    found = {**of_a_server(earlier), "enabled": enabled}
    asked: list[tuple[str, str, Any]] = []
    with api_of({}, asked) as api:
        registration.set_automation(api, now, {now["name"]: found})
    assert asked == [("PUT", "/automations/9", {**now, "enabled": enabled})]


def test_an_automation_that_a_user_changed_stays_as_it_is() -> None:
    earlier = yaml.safe_load((registration.EARLIER / "go-on-after-a-crash-2.yaml").read_text())
    now = yaml.safe_load((registration.AUTOMATIONS / "go-on-after-a-crash.yaml").read_text())
    found = of_a_server(earlier)
    trigger = found["trigger"]
    theirs = [
        of_a_server(now),
        {**found, "trigger": {**trigger, "within": 60.0}},
        {**found, "trigger": {**trigger, "match": {**trigger["match"], "prefect.resource.name": "mine"}}},
        {
            **found,
            "trigger": {**trigger, "match_related": [*trigger["match_related"], {"prefect.resource.role": "tag"}]},
        },
        {**found, "actions": [*found["actions"], {"type": "do-nothing"}]},
        {**found, "description": "mine"},
    ]
    asked: list[tuple[str, str, Any]] = []
    with api_of({}, asked) as api:
        for one in theirs:
            registration.set_automation(api, now, {now["name"]: one})
        assert asked == []
        registration.set_automation(api, now, {})
    assert asked == [("POST", "/automations/", now)]
