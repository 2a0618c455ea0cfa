"""Questions, and what is searched for their answers."""

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from igpo_core.environments.atlas import AtlasWorld
from igpo_core.environments.base import Interface, Need, WorldSettings
from igpo_core.environments.calculator import CalculatorWorld
from igpo_core.environments.lookup import LookupWorld
from igpo_core.environments.searching import OFFERS, OPEN_TOOL, RUBRIC, SEARCH, with_tools
from igpo_core.settings import WHERE, Settings, Share, Source

if TYPE_CHECKING:
    from igpo_core.environments.qa import CorpusEnvironment

KEY_VARIABLE = r"^[A-Z][A-Z0-9_]*_API_KEY$"  # else a preset of somebody else could send any variable anywhere
SECRET_NAME = re.compile(r"api.?key|(^|[^a-z])key([^a-z]|$)|token|secret|passw|authori|credential", re.IGNORECASE)


class QuestionFile(Settings):
    """One question file, and the split of its rows that name none (official files hold one split each)."""

    path: Path = Field(description="A file, or of the hub hf://datasets/<owner>/<name>@<commit>/<file>.")
    split: Literal["train", "dev", "test"] | None = None


class Suites(Settings):
    """Great Expectations suites of one's own (docs/data.md), JSON as great_expectations 1.x writes it, each of one table."""

    questions: Path | None = None
    corpus: Path | None = None
    trajectories: Path | None = None

    def placed(self, where: Callable[[Path], Path]) -> "Suites":
        """Return the same with each path where `where` has it."""
        return Suites(**{table: where(path) for table, path in self if path is not None})


class BM25Search(Settings):
    """BM25 over the corpus, on this machine: English best, any language as docs/data.md says."""

    kind: Literal["bm25"] = "bm25"


class DenseSearch(Settings):
    """Nearest passages by the inner product of a sentence-transformers model's normalised embeddings (extra [dense])."""

    kind: Literal["dense"] = "dense"
    model: str = Field(min_length=1, description="Hub name or folder of a sentence-transformers model.")
    revision: str | None = None
    query_prefix: str = Field("", description='What the model wants before a query ("query: " for E5).')
    passage_prefix: str = Field("", description='.. and before a passage ("passage: " for E5).')
    index: Literal["exact", "faiss"] = Field(
        "exact", description="exact: all inner products; faiss: HNSW, approximate."
    )
    batch_size: int = Field(256, ge=1, description="Passages encoded at a time.")


class HttpSettings(Settings):
    """How a service is called (igpo_core/http.py). A key goes to `url` from the variable `key_variable`: who writes a
    specification says what is sent where, within these limits."""

    url: str = Field(pattern=r"^https?://", description="Where it answers.")
    key_variable: str = Field(pattern=KEY_VARIABLE, description="Environment variable that holds the key: ..._API_KEY.")
    concurrency: int = Field(16, ge=1, le=1024, description="Calls at a time, of a process.")
    rate: float | None = Field(None, gt=0, description="Calls a second, of all processes together.")
    timeout: float = Field(20.0, gt=0, description="Seconds for one call.")
    attempts: int = Field(4, ge=1, le=20, description="Calls for one answer, where the failure may pass.")
    max_bytes: int = Field(2_000_000, ge=1000, description="Of an answer.")
    max_calls: int = Field(100_000, ge=1, description="Calls in all, shared by all processes.")

    @property
    def sends_key(self) -> bool:
        """Whether the key goes with every call."""
        return True

    @property
    def within_machine(self) -> bool:
        """Whether the address is of this machine."""
        return _is_loopback(urlsplit(self.url).hostname or "")

    @model_validator(mode="after")
    def _keeps_secrets(self) -> "HttpSettings":
        try:
            address = urlsplit(self.url)
            host = address.hostname
        except ValueError as error:
            raise ValueError(f"url is no address ({error}): give it as https://<host>/<path>") from error
        if "@" in address.netloc or {"?", "#"} & set(self.url):
            raise ValueError(
                "a user, a password or a query in an address would be logged with the settings: leave them out, put the key "
                "into the variable that key_variable names, and what else a search asks for into its parameters"
            )
        if not host:
            raise ValueError(f"url={self.url} names no host: give it as https://<host>/<path>")
        if self.sends_key and address.scheme == "http" and not _is_loopback(host):
            raise ValueError(
                f"url={self.url} would carry the key in {self.key_variable} in clear through the network: give an https "
                "address, or one of this machine (http://127.0.0.1:..), as an SSH tunnel has it"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


class WebSearch(HttpSettings):
    """Search by HTTP (igpo_core/retrieval/web.py). Results are pinned in a cache that all runs share."""

    kind: Literal["web"] = "web"
    api: Literal["serper", "bing", "retriever"] = Field(description="retriever: Search-R1's form, which needs no key.")
    key_variable: str = Field("SEARCH_API_KEY", pattern=KEY_VARIABLE)
    mode: Literal["live", "replay"] = Field("live", description="replay: the cache alone; what it lacks is a failure.")
    parameters: dict[str, str | int] = Field({}, description="Sent with every query (language, country, ...).")
    max_failure_share: Share = Field(0.1, description="Of recent searches; above it the run stops.")

    @property
    def sends_key(self) -> bool:
        """Return whether the back end is sent a key."""
        return self.api != "retriever"

    @field_validator("parameters")
    @classmethod
    def _no_key(cls, parameters: dict[str, str | int]) -> dict[str, str | int]:
        for name in parameters:
            if SECRET_NAME.search(name):
                raise ValueError(
                    f"parameters.{name} would be logged with the settings, and looks like a key: put it into the variable that "
                    "key_variable names"
                )
        return parameters


SearchConfig = Annotated[BM25Search | DenseSearch | WebSearch, Field(discriminator="kind")]


class QuestionFiles(WorldSettings):
    """Question tables and a passage corpus from files, in any format that igpo_core.data reads."""

    rubric: ClassVar[Mapping[str, str]] = RUBRIC
    offers: ClassVar[frozenset[Need]] = OFFERS | {"texts"}

    kind: Literal["files"] = "files"
    questions: tuple[QuestionFile, ...] = Field(min_length=1, description="Question files, each with its split.")
    corpus: tuple[Path, ...] = Field(
        (), description="Passage files; an official question file serves with its paragraphs. None for web search."
    )
    search: SearchConfig = Field(default_factory=BM25Search)
    evaluation: Path | None = Field(None, description="A question file whose rows become the test split.")
    trajectories: tuple[Path, ...] = Field(
        (),
        description="Files of expert trajectories in the messages form; a warm start learns from them with demonstrations: "
        "{kind: files, use: trajectories}.",
    )
    expectations: Suites | None = Field(
        None,
        description="Rules of one's own, which the tables are checked with beside ours. Other ones change no row.",
        json_schema_extra=WHERE,
    )
    only_answerable: bool = Field(True, description="Drop rows that their table marks as not answerable.")
    sources: tuple[Source, ...] = Field((), description="Keep these sources only; empty: all.")
    min_train: int = Field(1, ge=1, description="Fewer good train rows than this stops the flow.")
    min_dev: int = Field(1, ge=1)
    min_test: int = Field(1, ge=1)
    max_question_words: int = Field(
        200, ge=1, description="Where a script has no spaces between words, two characters count as one word."
    )
    max_answer_words: int = Field(30, ge=1, description="Longer aliases are dropped; a row left with none is bad.")
    top_k: int = Field(5, ge=1, le=100, description="Passages in an observation.")
    max_passage_words: int = Field(
        100,
        ge=1,
        description="A longer passage of the corpus is split into parts of so many words, of which neighbours share a fourth; a "
        "longer result of a web search is cut there.",
    )
    open_words: int = Field(
        0,
        ge=0,
        description="Words that the tool `open` shows of a passage that the policy names by its title, in one piece where the "
        "search has it in parts; 0: there is no such tool.",
    )

    @model_validator(mode="after")
    def _suites_have_their_tables(self) -> "QuestionFiles":
        for table in ("corpus", "trajectories"):
            if self.expectations is not None and getattr(self.expectations, table) and not getattr(self, table):
                raise ValueError(
                    f"expectations.{table} names a suite of a table that data.{table} does not give: leave it out"
                )
        return self

    @model_validator(mode="after")
    def _corpus_to_search(self) -> "QuestionFiles":
        if bool(self.corpus) is isinstance(self.search, WebSearch):
            raise ValueError(
                f"search.kind={self.search.kind} with {len(self.corpus)} corpus files: bm25 and dense search a corpus, web "
                "search has none; give data.corpus, or leave it out"
            )
        if self.open_words and not self.corpus:
            raise ValueError(
                f"open_words={self.open_words} gives a tool that opens passages of a corpus, and search.kind=web has none: leave "
                "open_words at 0"
            )
        return self

    @property
    def interface(self) -> Interface:
        """Return the search tool, and with open_words the tool that opens a passage."""
        return with_tools(SEARCH, OPEN_TOOL) if self.open_words else SEARCH

    def open(self, folder: Path, max_turns: int) -> "CorpusEnvironment":
        """Return the environment over published questions and their index."""
        from igpo_core.environments.qa import CorpusEnvironment

        return CorpusEnvironment(self, folder, max_turns)


DataConfig = Annotated[LookupWorld | AtlasWorld | CalculatorWorld | QuestionFiles, Field(discriminator="kind")]
