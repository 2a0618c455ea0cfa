"""Multi-turn rollout on vLLM servers: token ids in and out, episodes that do not wait for one another.

Each episode is a thread: it asks for a turn, searches, asks for the next one. The server keeps the prefixes of its earlier
turns (prefix caching), batches what comes together, and never sees text. Sampling is seeded by (run seed, purpose, step, place,
member, turn), but a server's batches decide its rounding: another run of the same seed need not be the same to the bit.
Weights reach the servers as a folder on a disk that both see. Beliefs are read by the trainer: a server gives log-probabilities
of its own arithmetic, and a gain is a difference of small numbers.
"""

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from igpo_core.config import Decoding, RolloutConfig, VllmEngine
from igpo_core.environments.base import Environment
from igpo_core.errors import ConfigError, ServiceError
from igpo_core.policies import Policy
from igpo_core.rollout.rows import RolloutTimes, Row, begin, search
from igpo_core.seeds import derive
from igpo_core.trajectory import Question, Trajectory


class _Away(Exception):
    """A server that may answer when it is asked again."""


class ServedEngine:
    """The servers of one training run, or of one of its processes. It satisfies igpo_core.rollout.rows.Engine."""

    def __init__(self, settings: VllmEngine, number: int = 0) -> None:
        """number: of this process, which asks the server of that place. Raises ConfigError where another run uses the folder
        of weights, ServiceError where a server does not answer."""
        self.settings, self._url = settings, settings.urls[number % len(settings.urls)]
        self._client = httpx.Client(
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=settings.concurrency),
            trust_env=False,
        )
        self._model = self._served_model()
        if number == 0:
            self._hold(settings.weights)

    def _hold(self, folder: Path) -> None:
        """Two runs that load their weights into the same servers would train on one another's trajectories."""
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"rollout.engine.weights={folder} is used by another run: give each run servers and a folder of its own, and "
                "set the specification's processes to 1"
            ) from error

    def load(self, write: Callable[[Path], None], step: int) -> None:
        """Give all servers the weights that `write` puts into a folder, and make them forget what they kept of older ones."""
        folder = self.settings.weights / f"step-{step:06d}"
        shutil.rmtree(folder, ignore_errors=True)
        write(folder)
        for url in self.settings.urls:
            told = {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}}
            self._post(f"{url}/collective_rpc", told)
            self._post(f"{url}/reset_prefix_cache", None)
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

        with ThreadPoolExecutor(self.settings.concurrency, "episode") as threads:
            searches = list(threads.map(play, episodes))
        times.search += sum(searches) / len(searches)
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
        """One episode to its end; seconds of its searches."""
        searching = 0.0
        while True:
            ids, logprobs = self._turn(policy, row, derive(*key, len(row.turns)), config, decoding)
            action = row.take(policy.protocol, ids, logprobs, config)
            if row.status is not None:
                return searching
            started = time.perf_counter()
            (observation,) = search(environment, [(row.question, action)])
            searching += time.perf_counter() - started
            row.see(policy.protocol, observation, config)
            if row.status is not None:
                return searching

    def _turn(
        self, policy: Policy, row: Row, seed: int, config: RolloutConfig, decoding: Decoding
    ) -> tuple[list[int], list[float]]:
        stops = sorted(policy.protocol.stop_ids)
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
        answer = self._post(f"{self._url}/v1/completions", asked)
        try:
            (choice,) = answer["choices"]
            ids, logprobs = list(choice["token_ids"]), list(choice["logprobs"]["token_logprobs"])
            ended, stopped = choice["finish_reason"], ids[-1] in stops
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ServiceError(
                f"{self._url} answers without token ids and their log-probabilities ({error!r}): it must be a vLLM that knows "
                "return_token_ids"
            ) from error
        if len(ids) != len(logprobs) or (ended == "stop") is not stopped or any(t in stops for t in ids[:-1]):
            raise ServiceError(
                f"{self._url} gave {len(ids)} tokens with {len(logprobs)} log-probabilities, finish_reason {ended!r}, last token "
                f"{ids[-1]}: a turn must come whole, with the token that ended it"
            )
        return ids, logprobs

    def _served_model(self) -> str:
        answer = self._ask("GET", f"{self._url}/v1/models", None)
        name: str = answer["data"][0]["id"]
        return name

    def _post(self, url: str, content: Any) -> Any:
        return self._ask("POST", url, content)

    def _ask(self, method: str, url: str, content: Any) -> Any:
        """The answer's JSON, {} for an empty one. Raises ServiceError when it does not come after all attempts, or is refused."""
        retrying = Retrying(
            retry=retry_if_exception_type(_Away),
            stop=stop_after_attempt(self.settings.attempts),
            wait=wait_exponential_jitter(multiplier=0.5, max=20.0),
            reraise=True,
        )
        try:
            return retrying(self._once, method, url, content)
        except _Away as error:
            raise ServiceError(
                f"the rollout server does not answer: {error}. See that `vllm serve` runs there (docs/scale.md); the run goes on "
                "from its last checkpoint"
            ) from error

    def _once(self, method: str, url: str, content: Any) -> Any:
        try:
            response = self._client.request(method, url, json=content)
        except httpx.TransportError as error:
            raise _Away(f"{url} ({type(error).__name__})") from error
        if response.status_code >= 500 or response.status_code == 429:
            raise _Away(f"{url} (status {response.status_code})")
        if not response.is_success:
            raise ServiceError(
                f"{url} refuses (status {response.status_code}): {response.text[:300]}. Weights are taken only by a server that "
                "was started with VLLM_SERVER_DEV_MODE=1"
            )
        return json.loads(response.text) if response.text.strip() else {}
