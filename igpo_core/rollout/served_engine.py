"""Multi-turn rollout on vLLM servers: token ids in and out, episodes that do not wait for one another.

Each episode is a thread: it asks for a turn, calls a tool, asks for the next one. The server keeps the prefixes of its earlier
turns (prefix caching), batches what comes together, and never sees text. Sampling is seeded by (run seed, purpose, step, place,
member, turn), but a server's batches decide its rounding: another run of the same seed need not be the same to the bit.
Weights reach the servers as a folder on a disk that both see. Beliefs are read by the trainer: a server gives log-probabilities
of its own arithmetic, and a gain is a difference of small numbers.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

from igpo_core.config import Decoding, RolloutConfig, VllmEngine, fingerprint
from igpo_core.environments.base import Environment
from igpo_core.errors import ConfigError, ServiceError
from igpo_core.folders import own_folder
from igpo_core.locks import PRIVATE, take
from igpo_core.policies import Policy
from igpo_core.rollout.rows import RolloutTimes, Row, begin, call_tools
from igpo_core.rollout.serving import Connection, is_logprob
from igpo_core.seeds import derive
from igpo_core.trajectory import Question, Trajectory


class ServedEngine:
    """The servers of one training run, or of one of its processes. It satisfies igpo_core.rollout.rows.Engine.

    A rollout that fails or is interrupted ends the engine: turns take minutes, and who is told to end has seconds.
    """

    def __init__(self, settings: VllmEngine, number: int = 0) -> None:
        """number: of this process, which asks the server of that place. Raises ConfigError where another run uses the folder
        of weights or a server, ServiceError where a server does not answer."""
        self.settings, self._url = settings, settings.urls[number % len(settings.urls)]
        self._connection = Connection(settings)
        self._model = self._connection.served_model(self._url)
        self._held = hold(settings) if number == 0 else []

    def require_processed_logprobs(self, prompt: Sequence[int]) -> None:
        """Raise ConfigError where the server of this process gives log-probabilities of another distribution than it samples from
        at temperatures other than 1 (igpo_core.rollout.serving)."""
        self._connection.require_processed_logprobs(self._url, self._model, prompt)

    def load(self, write: Callable[[Path], None], step: int) -> None:
        """Give all servers the weights that `write` puts into a folder, and make them forget what they kept of older ones."""
        folder = self.settings.weights / f"step-{step:06d}"
        shutil.rmtree(folder, ignore_errors=True)
        write(folder)
        for url in self.settings.urls:
            told = {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}}
            self._connection.ask("POST", f"{url}/collective_rpc", told)
            self._connection.ask("POST", f"{url}/reset_prefix_cache")
        for old in self.settings.weights.glob("step-*"):
            if old != folder:
                shutil.rmtree(old)

    def __call__(
        self,
        policy: Policy,
        environment: Environment,
        questions: Sequence[Question],
        config: RolloutConfig,
        *,
        members: int,
        key: tuple[int, str, int],
        decoding: Decoding = "sampled",
        times: RolloutTimes | None = None,
        places: Sequence[int] | None = None,
    ) -> list[Trajectory]:
        """As igpo_core.rollout.transformers_engine.rollout, without probes. Turn.logprobs are the server's."""
        started, times = time.perf_counter(), times or RolloutTimes()
        episodes = []
        for place, question in zip(places or range(len(questions)), questions, strict=True):
            for member in range(members):
                episodes.append((begin(policy, question, place, config), (*key, place, member)))
        if not episodes:
            return []

        def play(episode: tuple[Row, tuple[Any, ...]]) -> float:
            return self._play(policy, environment, *episode, config, decoding)

        threads = ThreadPoolExecutor(self.settings.concurrency, "episode")
        try:
            running = [threads.submit(play, episode) for episode in episodes]
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            calling = [episode.result() for episode in done]
        except BaseException:
            self._connection.end()
            for lock in self._held:
                lock.close()  # the run may go on in this process, which may keep this engine for its traceback's sake
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
        times.tools += sum(calling) / len(calling)
        times.total += time.perf_counter() - started
        return [row.finished() for row, _ in episodes]

    def _play(
        self,
        policy: Policy,
        environment: Environment,
        row: Row,
        key: tuple[Any, ...],
        config: RolloutConfig,
        decoding: Decoding,
    ) -> float:
        """One episode to its end; seconds of its tool calls."""
        calling = 0.0
        while True:
            ids, logprobs = self._turn(policy, row, derive(*key, len(row.turns)), config, decoding)
            row.append_turn(policy, ids, logprobs, config)
            if row.status is not None:
                return calling
            started = time.perf_counter()
            (observation,) = call_tools(environment, [row])
            calling += time.perf_counter() - started
            row.append_observation(policy.protocol, observation, config)
            if row.status is not None:
                return calling

    def _turn(
        self, policy: Policy, row: Row, seed: int, config: RolloutConfig, decoding: Decoding
    ) -> tuple[list[int], list[float]]:
        stops = sorted(policy.end_ids)
        asked = {
            "model": self._model,
            "prompt": row.ids,
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature if decoding == "sampled" else 0.0,
            "seed": seed % 2**31,
            "stop_token_ids": stops,
            "logprobs": 1,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "add_special_tokens": False,
            # a model's generation_config.json would change the distribution otherwise (Qwen2.5's does)
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        answer = self._connection.ask("POST", f"{self._url}/v1/completions", asked)
        match answer:
            case {
                "choices": [{"token_ids": [*ids], "logprobs": {"token_logprobs": [*logprobs]}, "finish_reason": ended}]
            } if ids:
                pass
            case _:
                raise ServiceError(
                    f"{self._url} answers without token ids and their log-probabilities: it must be a vLLM that knows "
                    "return_token_ids"
                )
        known = policy.model.get_input_embeddings().num_embeddings
        if not all(type(token) is int and 0 <= token < known for token in ids) or not all(map(is_logprob, logprobs)):
            raise ServiceError(
                f"{self._url} gave tokens that are no numbers from 0 to {known - 1}, or log-probabilities that are none: it "
                "must serve the model that is trained"
            )
        if len(ids) > config.max_new_tokens:
            raise ServiceError(
                f"{self._url} gave {len(ids)} tokens of {config.max_new_tokens} that were asked for at most"
            )
        if (
            len(ids) != len(logprobs)
            or (ended == "stop") is not (ids[-1] in stops)
            or any(t in stops for t in ids[:-1])
        ):
            raise ServiceError(
                f"{self._url} gave {len(ids)} tokens with {len(logprobs)} log-probabilities, finish_reason {ascii(ended)[:60]}, "
                f"last token {ids[-1]}: a turn must come whole, with the token that ended it"
            )
        return ids, logprobs


def hold(settings: VllmEngine) -> list[IO[str]]:
    """Locks that are held while the files are open: two runs that load their weights into the same servers would train on one
    another's trajectories. Of the folder of weights, wherever the other run is, and of each server's address, for runs of
    this user on this machine: no disk is known to be shared by all who could reach a server. Raises ConfigError."""
    settings.weights.mkdir(parents=True, exist_ok=True)
    places = {f"rollout.engine.weights={settings.weights}": settings.weights / "lock"}
    for url in settings.urls:
        places[f"rollout.engine.urls: {url}"] = own_folder() / f"server-{fingerprint(url)}.lock"
    held: list[IO[str]] = []
    for what, place in places.items():
        try:
            lock = take(place, PRIVATE)
        except OSError as error:
            raise ConfigError(
                f"cannot open the lock {place}: {error.strerror}. It must be a file of yours and no link: delete it"
            ) from error
        if lock is None:
            raise ConfigError(
                f"{what} is used by another run: give each run servers and a folder of its own, and set the specification's "
                "processes to 1"
            )
        held.append(lock)
    return held
