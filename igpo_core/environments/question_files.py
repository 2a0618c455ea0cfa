"""Settings of questions from files, of what is searched for their answers, and of their demonstrations."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from igpo_core.environments.base import Interface, Need, WorldSettings
from igpo_core.environments.searching import OFFERS, OPEN_TOOL, RUBRIC, SEARCH, with_tools
from igpo_core.http_settings import KEY_VARIABLE, HttpSettings
from igpo_core.settings import WHERE, Settings, Share, Source

if TYPE_CHECKING:
    from igpo_core.environments.qa import CorpusEnvironment

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


class WebSearch(HttpSettings):
    """Search by HTTP (igpo_core/retrieval/web.py). Results are pinned in a cache that all runs share."""

    rest_of_a_query: ClassVar[str] = ", and what else a search asks for into its parameters"

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

    def placed(self, where: Callable[[Path], Path]) -> "QuestionFiles":
        """Return the same with each path where `where` has it."""
        found = {
            "questions": tuple(file.model_copy(update={"path": where(file.path)}) for file in self.questions),
            "corpus": tuple(where(path) for path in self.corpus),
            "evaluation": where(self.evaluation) if self.evaluation else None,
            "trajectories": tuple(where(path) for path in self.trajectories),
            "expectations": self.expectations and self.expectations.placed(where),
        }
        return self.model_copy(update=found)

    @property
    def interface(self) -> Interface:
        """Return the search tool, and with open_words the tool that opens a passage."""
        return with_tools(SEARCH, OPEN_TOOL) if self.open_words else SEARCH

    @property
    def observation_words(self) -> int:
        """Return the words of an observation full of the longest passages."""
        return self.top_k * self.max_passage_words

    def lacking(self, demonstrations: Any) -> str | None:
        """Return that there are no trajectories, where demonstrations use them."""
        if demonstrations.use == "trajectories" and not self.trajectories:
            return "has use: trajectories, and data.trajectories names no file: name one, or use: searches"
        return None

    def open(self, folder: Path, max_turns: int) -> "CorpusEnvironment":
        """Return the environment over published questions and their index."""
        from igpo_core.environments.qa import CorpusEnvironment

        return CorpusEnvironment(self, folder, max_turns)


class FileDemonstrations(Settings):
    """Demonstrations of questions from files. They teach the format, and what experts do where there are trajectories of theirs.

    searches: train questions, searched for their supporting titles, then answered. trajectories: those of data.trajectories."""

    kind: Literal["files"] = "files"
    use: Literal["searches", "trajectories"] = "searches"
    max_searches: int = Field(2, ge=1, description="Of a demonstration that is made here (use: searches).")
