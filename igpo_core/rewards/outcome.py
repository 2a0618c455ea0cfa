"""Answer metrics: SQuAD v1.1's F1 and exact match, the rule that some sources add, and the authors' variants."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from igpo_core.text import one_form
from igpo_core.trajectory import Question

# The official evaluations of these sources give no partial credit to or for these answers.
CLOSED_SOURCES = frozenset({"hotpotqa", "2wikimultihopqa"})
CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def squad_normalise(text: str) -> str:
    """Lower case, ASCII punctuation deleted, articles removed, white space folded (SQuAD v1.1 evaluation), in one form."""
    text = "".join(char for char in one_form(text).lower() if char not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def paper_normalise(text: str) -> str:
    """Lower case, ASCII punctuation to spaces, white space folded, articles kept (the authors' scoring)."""
    return " ".join("".join(" " if char in _PUNCTUATION else char for char in one_form(text).lower()).split())


def answer_f1(prediction: str, question: Question) -> float:
    """Return the F1 of a prediction by the rule of the question's source.

    That is f1_score, except for HotpotQA and 2WikiMultihopQA. Their official evaluations give 0 where prediction or answer is
    yes, no or noanswer and the two differ. Without that rule "yes no" earns two thirds on every question of yes or no.
    """
    score = _closed_f1 if question.source in CLOSED_SOURCES else _count_f1
    return _best(prediction, question.answers, score)


def f1_score(prediction: str, answers: Sequence[str]) -> float:
    """Return the word-level F1 over token counts, the maximum over the answers. In [0, 1].

    An answer that normalises to nothing ("The The") has no words to count: there it is what exact_match is.
    """
    return _best(prediction, answers, _count_f1)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 if the normalised prediction equals any normalised answer, else 0.0.

    An answer that normalises to nothing ("The The") would equal "a" and "?": it is compared with its articles and punctuation,
    without regard to case and white space.
    """
    return _best(prediction, answers, _equal)


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


def _equal(prediction: str, answer: str) -> float:
    wanted = squad_normalise(answer)
    if wanted:
        return float(squad_normalise(prediction) == wanted)
    return float(one_form(prediction).lower().split() == one_form(answer).lower().split())


def _closed_f1(prediction: str, answer: str) -> float:
    predicted, wanted = squad_normalise(prediction), squad_normalise(answer)
    if predicted != wanted and CLOSED_ANSWERS.intersection((predicted, wanted)):
        return 0.0
    return _count_f1(prediction, answer)


def _count_f1(prediction: str, answer: str) -> float:
    predicted, gold = (squad_normalise(prediction).split(), squad_normalise(answer).split())
    if not gold:
        return _equal(prediction, answer)
    return _harmonic(sum((Counter(predicted) & Counter(gold)).values()), len(predicted), len(gold))


def _set_f1(prediction: str, answer: str) -> float:
    predicted, gold = (set(paper_normalise(prediction).split()), set(paper_normalise(answer).split()))
    return _harmonic(len(predicted & gold), len(predicted), len(gold))


def _harmonic(common: int, predicted: int, gold: int) -> float:
    if common == 0:
        return 0.0
    precision, recall = common / predicted, common / gold
    return 2 * precision * recall / (precision + recall)
