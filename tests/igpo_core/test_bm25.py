"""BM25: what is found and in which order, by hand; indexes that are whole, reproducible, or refused."""

import math
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from igpo_core.data import load_corpus, load_questions
from igpo_core.errors import DataError
from igpo_core.folders import checksums
from igpo_core.retrieval import Passage
from igpo_core.retrieval.bm25 import BM25, PASSAGES

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

ROWS = [
    ("p0", "Warsaw", "Capital of Poland on the Vistula."),
    ("p1", "Paris", "Capital of France on the Seine."),
    ("p2", "Rivers", "The Vistula, the Seine and others flow."),
    ("p3", "Seine", "Same words: alpha beta."),
    ("p4", "Seine", "Same words: alpha beta."),
]


def corpus(rows: list[tuple[str, str, str]]) -> pandas.DataFrame:
    return pandas.DataFrame(rows, columns=["passage_id", "title", "text"])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> BM25:
    folder = tmp_path_factory.mktemp("index") / "bm25"
    BM25.build(corpus(ROWS), folder)
    return BM25.open(folder)


def ids(index: BM25, query: str, k: int = 5) -> list[str]:
    return [passage.id for passage in index.search([query], k)[0]]


def test_only_passages_that_share_a_word_are_found(index: BM25) -> None:
    assert ids(index, "Poland") == ["p0"]
    assert ids(index, "warsaw") == ["p0"]  # a title, in another case
    assert ids(index, "capitals flowing") == ["p2", "p0", "p1"]  # stems; "flow" is the rarer word
    assert index.search(["Poland"], 1) == [[Passage("p0", "Warsaw", "Capital of Poland on the Vistula.")]]


def test_equal_scores_stand_in_table_order(index: BM25) -> None:
    for k in (1, 2, 3, 5, 50):
        assert ids(index, "alpha beta", k) == ["p3", "p4"][:k]
    assert ids(index, "capital", 1) == ["p0"]  # p0 and p1 tie: the same length, one occurrence each


def test_many_equal_scores_stand_in_table_order(tmp_path: Path) -> None:
    """Enough of them, in three interleaved scores, that an unstable sort or a partition would shuffle them."""
    texts = ["alpha beta", "alpha beta gamma", "alpha beta gamma delta"]  # the shorter, the better
    BM25.build(corpus([(f"p{n}", "Same", texts[n % 3]) for n in range(300)]), tmp_path / "bm25")
    index = BM25.open(tmp_path / "bm25")
    expected = [f"p{n}" for n in [*range(0, 300, 3), *range(1, 300, 3), *range(2, 300, 3)]]
    for k in (5, 150, 299, 300):
        assert ids(index, "alpha", k) == expected[:k]


def test_the_score_is_lucenes_formula(index: BM25) -> None:
    """For "Poland": idf ln(1 + (5 - 1 + 0.5) / (1 + 0.5)), tf 1 / (1 + 1.5 (0.25 + 0.75 length / mean))."""
    lengths = [
        4,
        4,
        5,
        5,
        5,
    ]  # words left after stop words: warsaw capit poland vistula, ..., river vistula sein other flow
    part = 1 / (1 + 1.5 * (0.25 + 0.75 * 4 / (sum(lengths) / 5)))
    expected = math.log(1 + 4.5 / 1.5) * part
    numbers = [index._vocabulary.number("poland")]
    assert index._vocabulary.number("polan") is None and index._vocabulary.number("zzz") is None
    assert index._index.get_scores_from_ids(numbers)[0] == pytest.approx(expected, rel=1e-5)


def test_a_query_without_words_finds_nothing(index: BM25) -> None:
    assert index.search(["", "the of and", "?!", "zzzunknown", "x", "Poland"], 5)[:5] == [[], [], [], [], []]
    assert index.search([], 5) == []


def test_a_batch_is_its_queries_one_by_one(index: BM25) -> None:
    queries = ["Seine", "Vistula", "Seine", "", "alpha Poland"]
    assert index.search(queries, 3) == [index.search([query], 3)[0] for query in queries]


def test_k_below_one_is_refused(index: BM25) -> None:
    with pytest.raises(ValueError, match="k=0"):
        index.search(["Seine"], 0)


def test_a_corpus_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no word to index"):
        BM25.build(corpus([("a", "", " ")]), tmp_path / "bm25")
    assert list(tmp_path.iterdir()) == []


def test_the_files_are_the_same_in_another_process(tmp_path: Path) -> None:
    """Python shuffles sets in each process; an index must not depend on it."""
    corpus(ROWS).to_parquet(tmp_path / "c.parquet")
    code = (
        "import sys, pandas; from pathlib import Path; from igpo_core.retrieval.bm25 import BM25\n"
        "BM25.build(pandas.read_parquet(sys.argv[1]), Path(sys.argv[2]))"
    )
    found = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(tmp_path / "c.parquet"), str(tmp_path / seed)]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": seed})
        found.append(checksums(tmp_path / seed))
    assert found[0] == found[1] and PASSAGES in found[0]


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no whole BM25 index"):
        BM25.open(tmp_path / "none")
    BM25.build(corpus(ROWS), tmp_path / "a")
    BM25.build(corpus(ROWS[:2]), tmp_path / "b")
    (tmp_path / "a" / PASSAGES).write_bytes((tmp_path / "b" / PASSAGES).read_bytes())
    with pytest.raises(DataError, match=r"counts 5 passages, passages\.arrow has 2"):
        BM25.open(tmp_path / "a")
    for name in ("indptr.csc.index.npy", PASSAGES, "params.index.json", "words.arrow"):
        BM25.build(corpus(ROWS), tmp_path / "c")
        file = tmp_path / "c" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(DataError, match="publish the data again"):
            BM25.open(tmp_path / "c")


def test_building_again_replaces_the_index(tmp_path: Path) -> None:
    BM25.build(corpus(ROWS), tmp_path / "bm25")
    BM25.build(corpus(ROWS[:2]), tmp_path / "bm25")
    assert len(BM25.open(tmp_path / "bm25")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bm25"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark tables are not beside this checkout")
def test_recall_on_the_benchmark(tmp_path: Path) -> None:
    """Title recall in the top 5 that the benchmark's README states for these settings."""
    BM25.build(load_corpus(SHARED / "corpus.parquet"), tmp_path / "bm25")
    index = BM25.open(tmp_path / "bm25")
    assert len(index) == 39466
    questions = load_questions(SHARED / "questions.parquet")
    questions = questions[questions["answerable"]]
    found = index.search(questions["question"].tolist(), 5)
    recall: dict[str, list[float]] = {}
    for source, titles, passages in zip(questions["source"], questions["supporting_titles"], found, strict=True):
        seen = {passage.title for passage in passages}
        recall.setdefault(source, []).append(sum(title in seen for title in titles) / len(titles))
    expected = {"hotpotqa": 0.736, "2wikimultihopqa": 0.664, "musique": 0.508, "nq": 0.827, "popqa": 0.933}
    means = {source: sum(shares) / len(shares) for source, shares in recall.items()}
    assert means == pytest.approx(expected, abs=0.0015)


@pytest.mark.parametrize("before", ["", "import jax, jax.lax; jax.armed = True"])
def test_jax_is_never_touched(before: str, tmp_path: Path) -> None:
    """Not imported, and where the user's program has it already, not run; it can be imported afterwards."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("armed = False\n")
    lax = "import jax\ndef top_k(*_):\n    raise SystemExit('JAX has taken the GPU')\n"
    (tmp_path / "jax" / "lax.py").write_text(lax)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{before}\n"
        "before = set(sys.modules)\n"
        "from igpo_core.retrieval.bm25 import BM25, bm25s\n"
        "assert not {name for name in set(sys.modules) - before if name.split('.')[0] == 'jax'}\n"
        "assert bm25s.selection.JAX_IS_AVAILABLE is False\n"
        f"import jax; assert jax.armed is {bool(before)}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
