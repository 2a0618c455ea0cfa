"""Rollouts on a server that speaks vLLM's protocol: a small policy behind /v1/completions, given its weights as a folder."""

import copy
import gc
import json
import math
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from igpo_core.checkpoints import load_weights
from igpo_core.config import ExperimentConfig, RolloutConfig, VllmEngine, fingerprint
from igpo_core.errors import ConfigError, ServiceError
from igpo_core.policies import Policy, make_policy
from igpo_core.rollout.mismatch import importance, mismatch_metrics, own_logprobs
from igpo_core.rollout.rows import RolloutTimes
from igpo_core.rollout.served_engine import ServedEngine
from igpo_core.rollout.serving import Connection
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.training import Trainer
from igpo_core.trajectory import RolloutStatus
from tests.waiting import HANGS


class Server:
    """tilt: added to the log-probabilities that are told, as another engine's rounding would. fault: what goes wrong.
    quick: set; a turn waits for it. raw: told are those before the temperature, as vLLM does by default. ends: what it stops at
    besides stop_token_ids, as a server does that reads the model's generation_config."""

    def __init__(self, policy: Policy) -> None:
        self.policy = Policy(copy.deepcopy(policy.model), policy.protocol, policy.window)
        self.loaded: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.resets = 0
        self.tilt, self.fault, self.raw = 0.0, "", False
        self.ends: tuple[int, ...] = ()
        self.lock = threading.Lock()
        self.quick = threading.Event()
        self.quick.set()
        self.url = ""

    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(asked["seed"])
        ids, told, reason = list(asked["prompt"]), [], "length"
        top: list[dict[str, float]] = []
        with torch.no_grad(), self.lock:
            for _ in range(asked["max_tokens"]):
                logits = self.policy.model(torch.tensor([ids])).logits[0, -1].float()
                logprobs = (logits / (asked["temperature"] or 1.0)).log_softmax(-1)
                greedy = asked["temperature"] == 0.0
                token = int(logprobs.argmax() if greedy else torch.multinomial(logprobs.exp(), 1, generator=generator))
                ids.append(token)
                shown = logits.log_softmax(-1) if self.raw else logprobs
                told.append(float(shown[token]) + self.tilt)
                top.append(
                    {f"token_id:{place}": float(shown[place]) + self.tilt for place in {token, int(shown.argmax())}}
                )
                if token in (*asked.get("stop_token_ids", ()), *self.ends):
                    reason = "stop"
                    break
        new = ids[len(asked["prompt"]) :]
        if self.fault == "no stop token" and reason == "stop":
            new, told = new[:-1] or new, told[:-1] or told
        logprobs_told = {"token_logprobs": told, "top_logprobs": top}
        return {"choices": [{"token_ids": new, "logprobs": logprobs_told, "finish_reason": reason}]}


@contextmanager
def serving(policy: Policy) -> Iterator[Server]:
    state = Server(policy)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, content: Any, status: int = 200) -> None:
            body = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.path == "/collective_rpc":  # the route is there, for another method
                return self.reply({}, 404 if state.fault == "no dev mode" else 405)
            self.reply({"data": [{"id": "served"}]})

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "null")
            if self.path == "/collective_rpc":
                if state.fault == "no dev mode":
                    return self.reply({"detail": "Not Found"}, 404)
                assert content["method"] == "reload_weights"
                state.loaded.append(content["kwargs"]["weights_path"])
                load_weights(Path(state.loaded[-1]), state.policy.model)
                return self.reply(None)
            if self.path == "/reset_prefix_cache":
                state.resets += 1
                return self.reply(None)
            assert self.path == "/v1/completions" and content["model"] == "served"
            state.asked.append(content)
            if state.fault == "busy once" and len(state.asked) == 1:
                return self.reply(None, 503)
            if state.fault == "down":
                return self.reply(None, 500)
            if state.fault == "refuses the last" and len(state.asked) == 4:
                return self.reply(None, 400)
            state.quick.wait(HANGS)
            return self.reply(state.complete(content))

        def log_message(self, *_: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None: ...  # a client that went away is no news

    server = Quiet(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        state.quick.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(taught: Any) -> Iterator[Server]:
    with serving(taught[2]) as state:
        yield state


def engine(server: Server, folder: Path, **given: Any) -> ServedEngine:
    return ServedEngine(settings(server, folder, **given))


def settings(server: Server, folder: Path, **given: Any) -> VllmEngine:
    return VllmEngine.model_validate({"urls": [server.url], "weights": folder, "concurrency": 4, **given})


def play(engine: ServedEngine, taught: Any, questions: int = 4, environment: Any = None, **given: Any) -> Any:
    config, own, policy = taught
    rollout: RolloutConfig = config.rollout
    asked = own.tasks("train")[:questions]
    return engine(policy, environment or own, asked, rollout, members=3, key=(5, "rollout", 2), **given)


def test_trajectories_are_whole_and_the_numbers_are_the_policys(server: Server, taught: Any, tmp_path: Path) -> None:
    config, _, policy = taught
    found = play(engine(server, tmp_path), taught)
    assert len(found) == 12 and {item.group for item in found} == {item.group for item in found[::3]}
    assert len({item.status for item in found}) > 1 and any(len(item.turns) > 1 for item in found)
    again = play(engine(server, tmp_path / "b"), taught, questions=1)
    assert [item.token_ids for item in again] == [item.token_ids for item in found[:3]]  # this server does not batch
    assert len({item.token_ids for item in found[:3]}) > 1  # members draw numbers of their own
    own = own_logprobs(policy, found, config)
    every = mismatch_metrics(own, settings(server, tmp_path))
    assert every["engine/mismatch_max"] < 1e-4 and every["engine/cut"] == 0 and abs(every["engine/kl"]) < 1e-4
    for before, after in zip(found, own, strict=True):
        assert after.token_ids == before.token_ids and after.status == before.status
        assert after.engine_logprobs == tuple(p for turn in before.turns for p in turn.logprobs)


def test_each_request_says_the_whole_distribution(server: Server, taught: Any, tmp_path: Path) -> None:
    """A model's own generation_config would cut the distribution that the update believes in."""
    play(engine(server, tmp_path), taught, questions=1)
    for asked in server.asked:
        assert (asked["top_p"], asked["top_k"], asked["min_p"], asked["repetition_penalty"]) == (1.0, -1, 0.0, 1.0)
        assert asked["temperature"] == taught[0].rollout.temperature and asked["return_token_ids"]
        assert asked["add_special_tokens"] is False and asked["stop_token_ids"] == sorted(taught[2].protocol.stop_ids)
    assert len({asked["seed"] for asked in server.asked}) == len(server.asked)
    server.asked.clear()
    greedy = play(engine(server, tmp_path / "b"), taught, questions=2, decoding="greedy")
    assert {asked["temperature"] for asked in server.asked} == {0.0}
    assert len({item.token_ids for item in greedy[:3]}) == 1


def test_a_slow_search_holds_up_its_own_episode_alone(server: Server, taught: Any, tmp_path: Path) -> None:
    _, own, _ = taught
    waited: list[float] = []

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(own, name)

        def step(self, requests: Any) -> Any:
            assert len(requests) == 1
            if not waited:
                waited.append(time.perf_counter())
                deadline = time.perf_counter() + HANGS
                while len(server.asked) < 12 and time.perf_counter() < deadline:  # all others get their first turns
                    time.sleep(0.01)
            return own.step(requests)

    times = RolloutTimes()
    found = play(engine(server, tmp_path), taught, environment=Slow(), times=times)
    assert waited and len(server.asked) >= 12 and len(found) == 12
    assert 0 < times.tools < times.total


def test_a_step_loads_the_weights_and_is_the_step_of_the_policy_itself(
    server: Server, taught: Any, tmp_path: Path
) -> None:
    trainer = Trainer(configure(taught, server, tmp_path), taught[1], copy.deepcopy(taught[2]))
    with torch.no_grad():
        for parameter in trainer.policy.model.parameters():
            parameter.mul_(1.01)  # not what the server has
    first = trainer.run_step()
    assert server.loaded == [str(tmp_path / "step-000000")] and server.resets == 1
    assert first.metrics["engine/mismatch_max"] < 1e-3  # it samples with the trainer's weights
    assert first.metrics["time/scoring"] > 0 and all(item.beliefs for item in first.scored)
    trainer.run_step()
    assert server.loaded[-1] == str(tmp_path / "step-000001") and server.resets == 2
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000001"]
    trainer.engine()
    assert len(server.loaded) == 3  # an evaluation after the step is of its weights
    trainer.engine()
    assert len(server.loaded) == 3


@pytest.mark.parametrize(
    ("tilt", "correction", "factor"),
    [(0.5, "truncated", math.exp(-0.5)), (-2.0, "truncated", 2.0), (-2.0, "none", 1.0)],
)
def test_truncated_importance_weights(
    server: Server, taught: Any, tmp_path: Path, tilt: float, correction: str, factor: float
) -> None:
    """A server that calls every token e^tilt times as likely: weights e^-tilt, cut at 2."""
    server.tilt = tilt
    config = configure(taught, server, tmp_path, correction=correction)
    found = own_logprobs(taught[2], play(engine(server, tmp_path), taught, questions=1), config)
    for item in found:
        assert importance(item, config.rollout.engine) == pytest.approx([factor] * item.sampled_tokens, rel=1e-3)
    metrics = mismatch_metrics(found, config.rollout.engine)
    assert metrics["engine/mismatch"] == pytest.approx(abs(tilt), rel=1e-3)
    assert metrics["engine/kl"] == pytest.approx(tilt, rel=1e-3)
    assert metrics["engine/cut"] == (tilt < -math.log(2))


def test_the_weights_scale_the_gradient(server: Server, taught: Any, tmp_path: Path) -> None:
    """All tokens weigh e^-0.5: the update's gradient is that much of the one without correction."""
    norms = {}
    server.tilt = 0.5
    for correction in ("none", "truncated"):
        config = configure(taught, server, tmp_path / correction, correction=correction)
        trainer = Trainer(config, taught[1], copy.deepcopy(taught[2]))
        norms[correction] = trainer.run_step().metrics["train/grad_norm"]
        del trainer
        gc.collect()  # the next run waits until this one has let go of the server
    assert norms["truncated"] == pytest.approx(norms["none"] * math.exp(-0.5), rel=1e-3)


def configure(taught: Any, server: Server, folder: Path, **given: Any) -> ExperimentConfig:
    content = json.loads(taught[0].model_dump_json())
    content["reward"] |= {"gain": "prob_diff"}
    content["rollout"] |= {"questions": 2, "group_size": 3}
    content["rollout"]["engine"] = json.loads(settings(server, folder, **given).model_dump_json())
    return ExperimentConfig.model_validate(content)


def test_faults_of_a_server(server: Server, taught: Any, tmp_path: Path) -> None:
    server.fault = "busy once"
    assert len(play(engine(server, tmp_path / "a"), taught, questions=1)) == 3
    server.fault = "down"
    with pytest.raises(ServiceError, match=r"does not answer: .*status 500.*vllm serve"):
        play(engine(server, tmp_path / "b", attempts=1), taught)
    server.fault = "no stop token"
    with pytest.raises(ServiceError, match="a turn must come whole"):
        play(engine(server, tmp_path / "c"), taught)
    server.fault = "no dev mode"
    with pytest.raises(ServiceError, match=r"status 404.*VLLM_SERVER_DEV_MODE=1"):
        engine(server, tmp_path / "d").load(lambda path: path.mkdir(), 0)
    with pytest.raises(ServiceError, match=r"status 404.*VLLM_SERVER_DEV_MODE=1"):
        Connection(settings(server, tmp_path)).require_dev_mode(server.url)
    server.fault = ""
    Connection(settings(server, tmp_path)).require_dev_mode(server.url)
    with pytest.raises(ServiceError, match=r"does not answer: .*ConnectError"):
        ServedEngine(VllmEngine(urls=("http://127.0.0.1:9",), weights=tmp_path / "e", attempts=1))


def test_log_probabilities_before_the_temperature_are_refused(server: Server, taught: Any, tmp_path: Path) -> None:
    """With T = .7 they would give importance weights of up to 2 where all should be 1. With T = 1 the two are the same."""
    content = json.loads(configure(taught, server, tmp_path / "a").model_dump_json())
    hot = {**content, "rollout": {**content["rollout"], "temperature": 0.7}}
    server.raw = True
    refused = None
    try:
        Trainer(ExperimentConfig.model_validate(hot), taught[1], copy.deepcopy(taught[2]))
    except ConfigError as error:
        refused = str(error)
    assert refused is not None and "--logprobs-mode processed_logprobs, or set rollout.temperature to 1" in refused
    gc.collect()
    server.asked.clear()
    Trainer(ExperimentConfig.model_validate(content), taught[1], copy.deepcopy(taught[2]))
    assert not server.asked  # nothing to prove
    gc.collect()
    server.raw = False
    trainer = Trainer(ExperimentConfig.model_validate(hot), taught[1], copy.deepcopy(taught[2]))
    assert {asked["max_tokens"] for asked in server.asked} == {1}
    assert {asked["temperature"] for asked in server.asked} == {0.1, 2.0}  # vLLM refuses more than 2
    assert trainer.run_step().metrics["engine/mismatch_max"] < 1e-3


def ending_policy(taught: Any, others: list[int]) -> Policy:
    """The policy with a generation_config that names other ends than the grammar's, as Qwen2.5's names <|endoftext|>."""
    model = copy.deepcopy(taught[2].model)
    model.generation_config.eos_token_id = [model.generation_config.eos_token_id, *others]
    return make_policy(model, taught[2].protocol.tokenizer, taught[2].protocol.interface)


def test_another_end_of_the_model_ends_a_turn_as_malformed(server: Server, taught: Any, tmp_path: Path) -> None:
    """</think> stands for Qwen2.5's <|endoftext|>: it ends a turn on a server and in the policy's own rollouts alike."""
    config, own, policy = taught
    other = policy.protocol.ids["</think>"]
    server.ends = (other,)  # whatever the request says
    asked = own.tasks("train")[:4]
    ending = ending_policy(taught, [other])
    for sample in (rollout, engine(server, tmp_path)):
        found = sample(ending, own, asked, config.rollout, members=3, key=(5, "rollout", 2))
        ended = [item for item in found if item.token_ids[-1] == other]
        assert len(found) == 12 and len(ended) > 6
        assert {item.status for item in ended} == {RolloutStatus.MALFORMED}
        assert all(other not in item.token_ids[:-1] for item in found)


def test_an_end_that_the_model_does_not_know_is_a_fault_of_the_server(
    server: Server, taught: Any, tmp_path: Path
) -> None:
    server.ends = (taught[2].protocol.ids["</think>"],)
    with pytest.raises(ServiceError, match="a turn must come whole"):
        play(engine(server, tmp_path), taught)


def episodes() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("episode")]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python leaves SIGINT ignored where it was at its start, as it is in a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how", ["interrupted", "refused"])
def test_nobody_waits_for_turns_under_way_when_a_rollout_ends(
    server: Server, taught: Any, tmp_path: Path, interruptible: None, how: str
) -> None:
    """Turns of a minute; the rollout is interrupted after a second, or one of four turns under way is refused."""
    server.quick.clear()
    used = engine(server, tmp_path)
    if how == "interrupted":
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        server.fault = "refuses the last"
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt if how == "interrupted" else ServiceError):
        play(used, taught)
    assert time.perf_counter() - started < 5
    while episodes() and time.perf_counter() - started < 10:
        time.sleep(0.05)
    # they ended without an answer and asked for no other turn; the thread of the refused one may have begun another episode
    assert not episodes() and len(server.asked) in (4, 5)


def test_two_runs_cannot_share_a_server(server: Server, tmp_path: Path) -> None:
    held = engine(server, tmp_path)
    with pytest.raises(ConfigError, match=r"rollout.engine.weights=.* is used by another run"):
        engine(server, tmp_path)
    with pytest.raises(ConfigError, match=r"rollout.engine.urls: http.* is used by another run"):
        engine(server, tmp_path / "another")
    assert held.settings.weights == tmp_path


@pytest.mark.parametrize("planted", ["in the temporary folder", "in the folder of locks", "in the folder of weights"])
def test_a_lock_never_touches_what_a_link_names(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    """The names of locks can be guessed; in the temporary folder anybody could plant one."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    name = f"server-{fingerprint(server.url)}.lock"
    places = {
        "in the temporary folder": tmp_path / "temporary" / f"igpo-lab-{os.getuid()}-{name}",
        "in the folder of locks": tmp_path / "user" / ".cache" / "igpo-lab" / platform.node() / name,
        "in the folder of weights": tmp_path / "weights" / "lock",
    }
    place = places[planted]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(precious)
    refused = ""
    try:
        engine(server, tmp_path / "weights")
    except ConfigError as error:
        refused = str(error)
    assert precious.read_text() == "precious"
    assert (str(place) in refused) is (planted != "in the temporary folder")


def test_locks_of_servers_are_the_users_alone(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    held = engine(server, tmp_path / "weights")
    locks = list((tmp_path / ".cache").rglob("*.lock"))
    assert held.settings.urls and [lock.stat().st_mode & 0o777 for lock in locks] == [0o600]
    assert locks[0].parent.stat().st_mode & 0o777 == 0o700


def test_where_servers_are_is_no_part_of_what_a_run_is(server: Server, taught: Any, tmp_path: Path) -> None:
    one = configure(taught, server, tmp_path).identity()
    assert one == configure(taught, server, tmp_path / "other", timeout=5.0).identity()
    assert one != configure(taught, server, tmp_path, correction="none").identity()
