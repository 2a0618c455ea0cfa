"""What a Prefect server is told: pools, a queue, the deployments of prefect.yaml, automations."""

import time
from typing import Any

import httpx
import yaml

from deployments.place import Place, run_once, say
from tasks.lab.home import PROJECT

POOL = "igpo"
SWEEPS_QUEUE = "sweeps"  # one sweep after another, whoever started them
ARMS_POOL = "igpo-arms"
NODES_POOL = "igpo-nodes"  # machines that join training runs of several
POOLS = {
    POOL: "Sweeps and whatever a user starts; `make up` runs its worker.",
    ARMS_POOL: "Arms of sweeps with `where: pool`. Not Ready until `make worker` serves it; nothing else needs it.",
    NODES_POOL: "Other machines of runs with training.nodes. Not Ready until `make worker POOL=igpo-nodes` serves it.",
}
# deployments that earlier versions registered, each with what they said of it
_SCHEDULED = {"entrypoint": "flows/ablation.py:ablation", "tags": ["ablation", "lookup", "scheduled"]}
_STARTED_ARM = (
    "What a sweep with `where pool` starts for each arm and seed. To train one yourself, take train/outcome-vs-igpo."
)
RETIRED: dict[str, tuple[dict[str, Any], ...]] = {
    "ablation/nightly": (
        {
            **_SCHEDULED,
            "description": "outcome-vs-igpo every night at 02:00 UTC; what is finished and unchanged is reused.",
            "parameters": {"preset": "outcome-vs-igpo"},
            "crons": ["0 2 * * *"],
        },
        {
            **_SCHEDULED,
            "description": "outcome-vs-igpo with two seeds, every night at 02:00 UTC; what is finished and unchanged is reused.",
            "parameters": {"preset": "outcome-vs-igpo", "seeds": [0, 1]},
            "crons": ["0 2 * * *"],
        },
    ),
    "ablation/weekly": (
        {
            **_SCHEDULED,
            "description": "outcome-vs-igpo with ten seeds, Sundays at 04:00 UTC; what is finished and unchanged is reused.",
            "parameters": {"preset": "outcome-vs-igpo", "seeds": [*range(10)]},
            "crons": ["0 4 * * 0"],
        },
    ),
    "train/arms": (
        {
            "entrypoint": "flows/train.py:train",
            "tags": ["arm"],
            "description": _STARTED_ARM,
            "parameters": {},
            "crons": [],
        },
    ),
}
SUCCESSORS = {"ablation/nightly": "night/nightly", "ablation/weekly": "night/nightly", "train/arms": "train-run/arms"}
FREE = ("command", "working_dir")  # of a pool's template: who may start a flow run shall not thereby run a shell
AT_ONCE = 3  # flow runs of pool `igpo`: a sweep, and what else was asked for
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)  # seconds, of a server on a machine that is busy
AUTOMATIONS = PROJECT / "deployments" / "automations"
EARLIER = AUTOMATIONS / "earlier"  # as they were before a change: what a server may still have of us
SERVERS_OWN = ("id", "created", "updated", "enabled")  # of an automation: what a server adds, and the user's switch


def create_pools(place: Place) -> None:
    """The work pools and the queue of sweeps, once: their settings are the user's from then on."""
    with client(place) as api:
        for pool, description in POOLS.items():
            found = api.get(f"/work_pools/{pool}")
            if found.status_code == httpx.codes.NOT_FOUND:
                template = str(PROJECT / "deployments" / "pools" / "process.json")
                created = ["work-pool", "create", pool, "--type", "process", "--base-job-template", template]
                run_once(place, "work-pool", ["prefect", *created])
                # not the worker's own --limit: with one, prefect 3.8's worker dies of a sweep that is started again at once
                # ("this borrower is already holding one of this CapacityLimiter's tokens")
                settings = {"concurrency_limit": AT_ONCE if pool == POOL else None, "description": description}
                api.patch(f"/work_pools/{pool}", json=settings).raise_for_status()
            else:
                close_template(api, found.raise_for_status().json())
            state = "created" if found.status_code == httpx.codes.NOT_FOUND else "there"
            say(f"Work pool {pool}: {state}" if pool == POOL else f"Work pool {pool}: {state}. {description}")
        if api.get(f"/work_pools/{POOL}/queues/{SWEEPS_QUEUE}").status_code == httpx.codes.NOT_FOUND:
            queue = {
                "name": SWEEPS_QUEUE,
                "concurrency_limit": 1,
                "description": "Sweeps run one after another, whoever started them.",
            }
            api.post(f"/work_pools/{POOL}/queues", json=queue).raise_for_status()


def close_template(api: httpx.Client, pool: dict[str, Any]) -> None:
    """A pool of an earlier version let a flow run choose the command; the rest of its template stays the user's."""
    template = pool["base_job_template"]
    parts = [template.get("job_configuration", {}), template.get("variables", {}).get("properties", {})]
    if any(name in part for part in parts for name in FREE):
        for part in parts:
            for name in FREE:
                part.pop(name, None)
        api.patch(f"/work_pools/{pool['name']}", json={"base_job_template": template}).raise_for_status()
        say(f"Work pool {pool['name']}: its flow runs no longer choose a {' or '.join(FREE)}")


class Patient(httpx.HTTPTransport):
    """Repeats a request that the server was too busy for (503: SQLite's lock was not to be had, and nothing was done)."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send it again after a pause while the server says that it is busy."""
        for pause in PAUSES:
            response = super().handle_request(request)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return response
            response.close()
            time.sleep(pause)
        return super().handle_request(request)


def client(place: Place) -> httpx.Client:
    """Of the Prefect server's REST API."""
    account = place.account
    auth = httpx.BasicAuth(*account.split(":", 1)) if account else None
    return httpx.Client(
        base_url=f"{place.prefect_url}/api", timeout=30, trust_env=False, auth=auth, transport=Patient()
    )


def set_automations(place: Place) -> None:
    """Those of deployments/automations, made under their name. Switched on or off, or changed, they stay the user's; one that is
    as an earlier version made it gets this version's form."""
    with client(place) as api:
        known = {entry["name"]: entry for entry in api.post("/automations/filter", json={}).raise_for_status().json()}
        for path in sorted(AUTOMATIONS.glob("*.yaml")):
            set_automation(api, yaml.safe_load(path.read_text()), known)
    say(f"Automations: {', '.join(sorted(name for name in known if name.startswith('igpo')))}")


def set_automation(api: httpx.Client, automation: dict[str, Any], known: dict[str, dict[str, Any]]) -> None:
    """Make it where `known`, by name, has none; replace what an earlier version made. Adds it to `known`."""
    name = automation["name"]
    found = known.get(name)
    if found is None:
        api.post("/automations/", json=automation).raise_for_status()
        known[name] = automation
    elif said(found) in [said(yaml.safe_load(path.read_text())) for path in EARLIER.glob("*.yaml")]:
        api.put(f"/automations/{found['id']}", json={**automation, "enabled": found["enabled"]}).raise_for_status()
        say(f"Automation {name}: an earlier version's, replaced")


def said(part: Any) -> Any:
    """Return what an automation says, equal for a file of ours and a server's answer: without what the server adds, the order of
    lists, and values that are empty."""
    if isinstance(part, dict):
        kept = {key: said(value) for key, value in part.items() if key not in SERVERS_OWN}
        return {key: value for key, value in kept.items() if value not in (None, False, {}, [])}
    if isinstance(part, list):
        return sorted((said(value) for value in part), key=repr)
    return part


def deploy(place: Place) -> None:
    """Register the deployments of prefect.yaml, and retire those of older versions."""
    say("Deployments: registering those of prefect.yaml")
    run_once(place, "deploy", ["prefect", "--no-prompt", "deploy", "--all"])
    with client(place) as api:
        for name in RETIRED:
            retire(api, name)


def retire(api: httpx.Client, name: str) -> None:
    """Delete a deployment that an earlier version registered. One of that name that says anything else is the user's: it stays,
    and so does ours once its parameters or its schedule were changed."""
    answer = api.get(f"/deployments/name/{name}")
    if answer.status_code == httpx.codes.NOT_FOUND:
        return
    found = answer.raise_for_status().json()
    said_of_it = {
        **{field: found[field] for field in ("entrypoint", "description", "parameters")},
        "tags": sorted(found["tags"]),
        "crons": [entry["schedule"].get("cron") for entry in found["schedules"]],
    }
    successor = SUCCESSORS[name]
    if said_of_it in RETIRED[name]:
        api.delete(f"/deployments/{found['id']}").raise_for_status()
        say(f"Deployment {name}: deleted, {successor} does its work")
    else:
        say(f"Deployment {name}: yours, stays. Earlier versions had one of this name, whose work {successor} does")
