"""Dense search: passages and queries as normalised embeddings of a sentence-transformers model, ranked by inner product.

An index folder holds the embeddings as a memory-mapped array, the passages as an Arrow file, which many processes share,
and for index=faiss an HNSW graph. Needs the extra [dense]: pip install -e '.[dense]'.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.ipc

from igpo_core.config import DenseSearch
from igpo_core.errors import ConfigError, DataError
from igpo_core.folders import fill_folder
from igpo_core.hub import require_model
from igpo_core.retrieval import Passage
from igpo_core.retrieval.bm25 import PASSAGES, passage_table
from igpo_core.text import one_form

if TYPE_CHECKING:
    import pandas

EMBEDDINGS = "embeddings.npy"
GRAPH = "hnsw.faiss"
NEIGHBOURS, BUILD_DEPTH, SEARCH_DEPTH = 32, 200, 128  # of HNSW
ROWS = 65_536  # passages whose products are taken at a time


class Dense:
    """An index that was built with `build` and is opened with `open`."""

    def __init__(self, config: DenseSearch, encoder: Any, embeddings: Any, passages: pyarrow.Table, graph: Any) -> None:
        self.config, self._encoder = config, encoder
        self._embeddings, self.passages, self._graph = embeddings, passages, graph

    @classmethod
    def build(cls, corpus: "pandas.DataFrame", folder: Path, config: DenseSearch) -> None:
        """Encode the passages of a frame (passage_id, title, text) into a new folder, whole or absent."""
        encoder = load_encoder(config)
        texts = [f"{title} {text}" for title, text in zip(corpus["title"], corpus["text"], strict=True)]
        embeddings = _encode(encoder, texts, config.passage_prefix, config.batch_size)

        def write(path: Path) -> None:
            np.save(path / EMBEDDINGS, embeddings)
            table = passage_table(corpus)
            with pyarrow.ipc.new_file(path / PASSAGES, table.schema) as file:
                file.write_table(table)
            if config.index == "faiss":
                faiss = _faiss()
                faiss.omp_set_num_threads(1)  # the graph depends on the order in which threads insert
                graph = faiss.IndexHNSWFlat(embeddings.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
                graph.hnsw.efConstruction = BUILD_DEPTH
                graph.add(embeddings)
                faiss.write_index(graph, str(path / GRAPH))

        fill_folder(folder, write)

    @classmethod
    def open(cls, folder: Path, config: DenseSearch) -> "Dense":
        """Memory-map an index folder and load the model. Raises DataError when the folder is none, or damaged."""
        try:
            embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r")
            passages = pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / PASSAGES))).read_all()
            graph = None
            if config.index == "faiss":
                graph = _faiss().read_index(str(folder / GRAPH))
                graph.hnsw.efSearch = SEARCH_DEPTH
        except (OSError, ValueError, RuntimeError, pyarrow.ArrowException) as error:
            raise DataError(f"{folder} is no whole dense index ({error}): publish the data again") from error
        if passages.num_rows != len(embeddings):
            raise DataError(
                f"{folder}: {len(embeddings)} embeddings for {passages.num_rows} passages: publish the data again"
            )
        return cls(config, load_encoder(config), embeddings, passages, graph)

    def __len__(self) -> int:
        return len(self._embeddings)

    def passage(self, row: int) -> Passage:
        """Return the passage of a row of the corpus table."""
        return Passage(*(self.passages.column(name)[row].as_py() for name in ("passage_id", "title", "text")))

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """The k passages with the largest inner product, equal ones in table order; none for an empty query.

        Raises ValueError for k < 1.
        """
        if k < 1:
            raise ValueError(f"k={k}: ask for at least one passage")
        asked = [query for query in dict.fromkeys(queries) if one_form(query)]
        found: dict[str, list[Passage]] = {query: [] for query in queries}
        if asked:
            # one by one: a matrix product rounds differently by the number of its rows, and the order must not
            embedded = [_encode(self._encoder, [query], self.config.query_prefix, 1)[0] for query in asked]
            for query, embedding in zip(asked, embedded, strict=True):
                rows = self._near(embedding, k) if self._graph is not None else self._best(embedding, k)
                found[query] = [self.passage(row) for row in rows]
        return [list(found[query]) for query in queries]

    def _best(self, query: Any, k: int) -> list[int]:
        scores = np.concatenate(
            [self._embeddings[start : start + ROWS] @ query for start in range(0, len(self._embeddings), ROWS)]
        )
        least = np.partition(scores, -k)[-k] if k < len(scores) else -np.inf
        rows = np.flatnonzero(scores >= least)
        best: list[int] = rows[np.lexsort((rows, -scores[rows]))][:k].tolist()
        return best

    def _near(self, query: Any, k: int) -> list[int]:
        _, rows = self._graph.search(query[None], k)
        return [int(row) for row in rows[0] if row >= 0]


def settings(config: DenseSearch) -> dict[str, Any]:
    """What decides an index besides its corpus: part of a published data version."""
    import sentence_transformers

    return {
        "library": f"sentence-transformers {sentence_transformers.__version__}",
        "weights": _weights(config),
        "hnsw": [NEIGHBOURS, BUILD_DEPTH, SEARCH_DEPTH] if config.index == "faiss" else None,
    }


def load_encoder(config: DenseSearch) -> Any:
    """The embedding model: safetensors only, no remote code. Raises ConfigError when it or its library is missing."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError("search.kind=dense needs the extra [dense]: pip install -e '.[dense]'") from error
    require_model(config.model, config.revision, "search.model")
    try:
        return SentenceTransformer(
            config.model,
            revision=config.revision,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
            device="cpu",
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load the embedding model {config.model}: {error}") from error


def _weights(config: DenseSearch) -> str:
    """The model's identity: the hash of a folder's weights, the name and revision of a hub model."""
    from igpo_core.folders import file_hash

    weights = Path(config.model) / "model.safetensors"
    return file_hash(weights) if weights.is_file() else f"{config.model}@{config.revision}"


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("search.index=faiss needs the extra [dense]: pip install -e '.[dense]'") from error
    return faiss


def _encode(encoder: Any, texts: Sequence[str], prefix: str, batch_size: int) -> Any:
    """Normalised embeddings [len(texts), d] of texts in one_form, float32."""
    vectors = encoder.encode(
        [prefix + one_form(text) for text in texts],
        batch_size=batch_size,
        normalize_embeddings=True,
        convert_to_numpy=True,
        show_progress_bar=False,
    )
    return np.ascontiguousarray(vectors, dtype=np.float32)
