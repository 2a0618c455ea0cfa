"""Answer metrics: SQuAD v1.1's F1 and exact match, and the authors' variants for comparability."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def squad_normalise(text: str) -> str:
    """Lower case, ASCII punctuation deleted, articles removed, white space folded (SQuAD v1.1 evaluation)."""
    text = "".join(char for char in text.lower() if char not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def paper_normalise(text: str) -> str:
    """Lower case, ASCII punctuation to spaces, white space folded, articles kept (the authors' scoring)."""
    return " ".join("".join(" " if char in _PUNCTUATION else char for char in text.lower()).split())


def f1_score(prediction: str, answers: Sequence[str]) -> float:
    """Word-level F1 over token counts, maximum over the answers. In [0, 1]."""
    return _best(prediction, answers, _count_f1)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals any normalised answer, else 0.0."""
    return _best(prediction, answers, lambda a, b: float(squad_normalise(a) == squad_normalise(b)))


def paper_f1_score(prediction: str, answers: Sequence[str]) -> float:
    """F1 over token sets, as the authors' code has it: a repeated word counts once."""
    return _best(prediction, answers, _set_f1)


def paper_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Exact match after the authors' normalisation."""
    return _best(prediction, answers, lambda a, b: float(paper_normalise(a) == paper_normalise(b)))


def _best(prediction: str, answers: Sequence[str], score: Callable[[str, str], float]) -> float:
    if isinstance(answers, str):
        raise TypeError("answers must be a sequence of strings, not one string")
    if not answers:
        raise ValueError("a question needs at least one answer to be scored against")
    return max(score(prediction, answer) for answer in answers)


def _count_f1(prediction: str, answer: str) -> float:
    predicted, gold = (squad_normalise(prediction).split(), squad_normalise(answer).split())
    return _harmonic(sum((Counter(predicted) & Counter(gold)).values()), len(predicted), len(gold))


def _set_f1(prediction: str, answer: str) -> float:
    predicted, gold = (set(paper_normalise(prediction).split()), set(paper_normalise(answer).split()))
    return _harmonic(len(predicted & gold), len(predicted), len(gold))


def _harmonic(common: int, predicted: int, gold: int) -> float:
    if common == 0:
        return 0.0
    precision, recall = common / predicted, common / gold
    return 2 * precision * recall / (precision + recall)
