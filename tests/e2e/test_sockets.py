"""Where the product's processes take connections while the servers start, a sweep goes on and a run of two processes trains."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import ROOT, Servers, free_ports
from tests.sockets import Listener, Watch

# what takes connections, by a part of its command: the table of docs/security.md
PURPOSES = {
    "prefect server start": "the Prefect server: its API asks for the account",
    "deployments.mlflow_server": "MLflow: its own hosts and origins; the account with IGPO_MLFLOW_ACCOUNT=on",
    "prefect worker start": "the worker tells a flow run that it is cancelled; a random token for each",
    "multiprocessing.forkserver": "a sweep starts its arms; a socket in a folder of the user's own, mode 0700",
    "tasks.runs.together": "the ranks of a run exchange tensors (gloo)",
}


def purpose(listener: Listener) -> str:
    command = " ".join(listener.command)
    return next((told for part, told in PURPOSES.items() if part in command), "")


@pytest.mark.night
@pytest.mark.timeout(3600)
def test_nothing_listens_beyond_loopback_from_make_up_to_a_run_of_two_processes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    ports = dict(zip(("MLFLOW_PORT", "PREFECT_PORT"), free_ports(), strict=True))
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "IGPO_"))},
        **ports,
        "IGPO_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{ports['PREFECT_PORT']}/api",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports['MLFLOW_PORT']}",
    }
    place = Servers(home, environment, "")
    content = yaml.safe_load((ROOT / "deployments" / "presets" / "tiny.yaml").read_text())
    content["base"]["training"]["processes"] = 2
    together = tmp_path / "together.yaml"
    together.write_text(yaml.safe_dump({**content, "name": "together", "seeds": [0]}))
    asked = json.dumps({"preset": str(together)})
    watch = Watch(home)

    def go(during: str, *command: str) -> None:
        watch.during = during
        done = place.run(*command, timeout=1500)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    try:
        with watch:
            go("make up", sys.executable, "-m", "deployments.services", "up")
            if (home / "account").is_file():
                environment["PREFECT_API_AUTH_STRING"] = (home / "account").read_text().strip()
            go("a sweep", sys.executable, "-m", "flows.ablation", "tiny", "--seeds", "0")
            go("a run of two processes", "prefect", "deployment", "run", "ablation/tiny", "--params", asked, "--watch")
    finally:
        place.run(sys.executable, "-m", "deployments.services", "down")
        for listener in sorted(watch.found, key=str):
            print(listener)
    ranks = {listener.port for listener in watch.found if "tasks.runs.together" in listener.command}
    assert watch.looks > 100 and {int(port) for port in ports.values()} <= {found.port for found in watch.found}
    assert len(ranks) >= 2, "the two processes were not seen"
    assert watch.beyond == []
    assert [str(listener) for listener in watch.found if not purpose(listener)] == []


LISTENS = """
import os, socket, time
one = socket.socket(socket.{family}, socket.{kind})
one.bind({address})
if socket.{kind} == socket.SOCK_STREAM:
    one.listen()
print(os.getpid(), flush=True)
time.sleep(60)
"""
LEAVES = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"


def seen(watch: Watch, program: str, *launcher: str, home: str = "") -> list[Listener]:
    """What the watch tells of a program that listens, within two looks of it."""
    started = subprocess.Popen(
        [sys.executable, "-c", *launcher, program],
        env={**os.environ, "IGPO_HOME": home},
        stdout=subprocess.PIPE,
        text=True,
        cwd=watch.home,
    )
    assert started.stdout is not None
    number = int(started.stdout.readline())
    looks = watch.looks
    while watch.looks < looks + 2:
        time.sleep(0.01)
    os.kill(number, signal.SIGKILL)
    started.wait()
    started.stdout.close()
    return [listener for listener in watch.found if program in listener.command]


@pytest.mark.parametrize(
    ("family", "kind", "address", "beyond"),
    [
        ("AF_INET", "SOCK_STREAM", "('0.0.0.0', 0)", True),
        ("AF_INET", "SOCK_STREAM", "('127.0.0.1', 0)", False),
        ("AF_INET", "SOCK_STREAM", "('127.8.0.1', 0)", False),
        ("AF_INET", "SOCK_DGRAM", "('0.0.0.0', 0)", True),
        ("AF_INET6", "SOCK_STREAM", "('::', 0)", True),
        ("AF_INET6", "SOCK_STREAM", "('::1', 0)", False),
        ("AF_INET6", "SOCK_STREAM", "('::ffff:127.0.0.1', 0)", False),
        ("AF_UNIX", "SOCK_STREAM", "'\\0igpo-watched-%d' % os.getpid()", True),
        ("AF_UNIX", "SOCK_STREAM", "'watched'", False),
    ],
)
def test_the_watch_sees_who_listens(tmp_path: Path, family: str, kind: str, address: str, beyond: bool) -> None:
    if family == "AF_INET6" and not Path("/proc/net/if_inet6").read_text():
        pytest.skip("no IPv6 here")
    program = LISTENS.format(family=family, kind=kind, address=address)
    with Watch(tmp_path, "now") as watch:
        assert [listener.beyond for listener in seen(watch, program)] == [beyond]


def test_the_watch_knows_by_its_home_a_process_that_left_the_family(tmp_path: Path) -> None:
    """As the servers do, which outlive `make up`. One of another home is not ours."""
    program = LISTENS.format(family="AF_INET", kind="SOCK_STREAM", address="('0.0.0.0', 0)")
    with Watch(tmp_path, "now") as watch:
        assert seen(watch, program, LEAVES, home=str(tmp_path / "other")) == []
        assert [listener.beyond for listener in seen(watch, program, LEAVES, home=str(tmp_path))] == [True]
