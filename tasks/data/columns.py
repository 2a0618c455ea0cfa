"""The plain columns that rules look at: word counts, copies, titles that are missing, answers that a text gives away."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas

from igpo_core.config import DataConfig, QuestionFiles
from igpo_core.data import SPLITS, identity_key, normalised
from igpo_core.data.schema import DEFECT
from igpo_core.protocol import MARKERS
from igpo_core.rewards.outcome import squad_normalise
from igpo_core.text import count_words, mostly_unspaced, one_form

# What SQuAD's normalisation deletes and yet tells answers apart: C# and C, -40 and 40, 3.5 and 35, 1/2 and 12, vitamin A.
_SIGN = re.compile(r"[+#%$@=<>^~*\\|]|(?<!\w)-(?=\d)|(?<=\d)[-.:](?=\d)|(?<=\w)[/&](?=\w)|(?<=\w )A$")
UNREADABLE = "\ufffd"  # what a program writes for a character that it could not read
LONGEST_NAME = 64  # words of an answer that is looked for in a text
# Where a text states its answer: "<answer>Paris", "Answer: Paris", "the answer is Paris", "\boxed{Paris".
_STATED = re.compile(r"<answer>|\\boxed\{|\banswer\s*(?:is\b|[:=])", re.IGNORECASE)


def derive_corpus(corpus: pandas.DataFrame) -> pandas.DataFrame:
    """Return the derived columns of a passage table."""
    sound = corpus[corpus[DEFECT].isna()]
    text_words = sound["text"].map(count_words)
    columns = {
        "id_copy": sound.groupby("passage_id", sort=False).cumcount(),
        "title_words": sound["title"].map(count_words),
        "text_words": text_words,
        "words_of_text": text_words.where(text_words > 0),  # an empty text is no stub besides
        "text_copy": sound.groupby("text", sort=False).cumcount(),
        "unspaced": sound["text"].map(mostly_unspaced).astype(int),
    }
    return _frame(corpus, columns)


def derive_questions(
    questions: pandas.DataFrame, titles: set[str] | None, longest: int | None, config: DataConfig
) -> tuple[pandas.DataFrame, "pandas.Series[Any]"]:
    """The derived columns, and each row's usable aliases. titles: of the good passages; None: no corpus."""
    if DEFECT not in questions:
        questions = questions.assign(**{DEFECT: pandas.Series(pandas.NA, index=questions.index, dtype="str")})
    given = questions["answers"].map(lambda aliases: [alias for alias in aliases if one_form(alias)])
    usable = given.map(lambda aliases: [a for a in aliases if longest is None or count_words(a) <= longest])
    sound = questions[questions[DEFECT].isna()]
    aliases = given[sound.index].map(lambda names: [normalised(name) for name in names])
    keys = sound["question"].map(normalised)
    asked = sound["question"].map(identity_key)
    signs = _signs(given[sound.index])
    required = sound["answerable"].astype(bool)
    if isinstance(config, QuestionFiles) and config.evaluation is not None:
        required &= sound["split"] != "test"  # evaluation rows need not be answerable from the corpus
    missing = [
        sum(title not in titles for title in named) if titles is not None and needed else 0
        for named, needed in zip(sound["supporting_titles"], required, strict=True)
    ]
    columns: dict[str, Any] = {
        "id_copy": sound.groupby("id", sort=False).cumcount(),
        "question_words": sound["question"].map(count_words),
        "aliases_given": given[sound.index].map(len),
        # A row without any alias fails "answers not empty" and no other rule.
        "aliases_usable": usable[sound.index].map(len).where(given[sound.index].map(len) > 0),
        "aliases_dropped": sound["answers"].map(len) - usable[sound.index].map(len),
        "answers_not_given": given[sound.index].map(
            lambda names: sum(any(sign in name for sign in (*MARKERS, UNREADABLE)) for name in names)
        ),
        "bare_answers": given[sound.index].map(lambda names: sum(not squad_normalise(name) for name in names)),
        "answers_alike": given[sound.index].map(
            lambda names: sum(len(signs.get(squad_normalise(name), ())) > 1 for name in names)
        ),
        "missing_titles": pandas.Series(missing, index=sound.index),
        "answer_stated": _each(_states, sound["question"], aliases),
        "answer_in_distractors": _each(_any_names, sound["distractors"], aliases),
        "answer_named": _each(_names, keys, aliases),
        "asked_before": asked.groupby([asked, sound["split"]], sort=False).cumcount().where(asked != ""),
    }
    frame = _frame(questions, columns)
    frame["source"] = sound["source"].reindex(questions.index)
    frame["split"] = sound["split"].fillna("(none)").reindex(questions.index)
    frame["shared_with"] = _shared(asked, sound["split"]).reindex(questions.index)
    return frame, usable


def derive_trajectories(trajectories: pandas.DataFrame, questions: pandas.DataFrame) -> pandas.DataFrame:
    """Return the derived columns of a trajectory table. questions: the good ones."""
    sound = trajectories[trajectories[DEFECT].isna()]
    held_out = {
        split: set(questions["question"][questions["split"] == split].map(identity_key))
        for split in SPLITS
        if split != "train"
    }
    asked = pandas.Series(None, index=trajectories.index, dtype="object")
    for split, keys in held_out.items():
        asked[sound.index[sound["question"].map(identity_key).isin(keys)]] = split
    columns = {
        "id_copy": sound.groupby("id", sort=False).cumcount(),
        "answer_words": sound["answer"].map(count_words),
    }
    return _frame(trajectories, columns).assign(asked_in=asked)


def _frame(table: pandas.DataFrame, columns: dict[str, Any]) -> pandas.DataFrame:
    """Integer columns over all rows, null for defective ones, with `row`, the position, and `defect`."""
    frame = pandas.DataFrame({name: column.reindex(table.index).astype("Int64") for name, column in columns.items()})
    defect = table[DEFECT] if DEFECT in table else pandas.Series(None, index=table.index, dtype="object")
    return frame.assign(defect=defect, row=range(len(table)))


def _each(holds: Any, texts: "pandas.Series[Any]", aliases: "pandas.Series[Any]") -> "pandas.Series[Any]":
    """0 or 1 for each row."""
    return pandas.Series([int(holds(t, a)) for t, a in zip(texts, aliases, strict=True)], index=texts.index)


def _shared(keys: "pandas.Series[Any]", splits: "pandas.Series[Any]") -> "pandas.Series[Any]":
    """The later split that asks the same question: test for dev and train, else dev for train, else missing."""
    asked = {split: set(keys[splits == split]) - {""} for split in SPLITS}
    shared = pandas.Series(None, index=keys.index, dtype="object")
    shared[(splits == "train") & keys.isin(asked["dev"])] = "dev"
    shared[splits.isin(["train", "dev"]) & keys.isin(asked["test"])] = "test"
    return shared


def _signs(answers: "pandas.Series[Any]") -> dict[str, set[str]]:
    """The different signs in the answers that SQuAD's normalisation makes one: {"c": {"", "#"}} for C and C#."""
    found: dict[str, set[str]] = {}
    for names in answers:
        for name in names:
            key = squad_normalise(name)
            if key:
                found.setdefault(key, set()).add("".join(_SIGN.findall(name)))
    return found


def _names(key: str, aliases: Sequence[str]) -> bool:
    """Whether a normalised text has one of the normalised aliases as whole words; yes and no are no names."""
    return _have(key.split(), _by_length(alias for alias in aliases if alias not in ("yes", "no")))


def _any_names(texts: Sequence[str], aliases: Sequence[str]) -> bool:
    known = _by_length(alias for alias in aliases if alias not in ("yes", "no"))
    return any(_have(normalised(text).split(), known) for text in texts)


def _states(text: str, aliases: Sequence[str]) -> bool:
    """Whether a text gives an alias out as the answer. "Answer: yes or no" names options and states nothing."""
    words: list[str] = []
    starts, end = [], 0
    for marker in _STATED.finditer(text):  # each piece is normalised once, whatever the number of markers
        words += normalised(text[end : marker.end()]).split()
        end = marker.end()
        starts.append(len(words))
    if not starts:
        return False
    words += normalised(text[end:]).split()
    return any(
        tuple(words[at : at + length]) in names and words[at + length : at + length + 1] != ["or"]
        for length, names in _by_length(aliases).items()
        for at in starts
    )


def _by_length(aliases: Iterable[str]) -> dict[int, set[tuple[str, ...]]]:
    """Normalised aliases as words, by their number; LONGEST_NAME at most, so that a text is looked through in time that grows
    with its length alone, whatever the number of aliases."""
    found: dict[int, set[tuple[str, ...]]] = {}
    for alias in aliases:
        words = tuple(alias.split())
        if 0 < len(words) <= LONGEST_NAME:
            found.setdefault(len(words), set()).add(words)
    return found


def _have(words: Sequence[str], known: Mapping[int, set[tuple[str, ...]]]) -> bool:
    return any(
        tuple(words[at : at + length]) in names
        for length, names in known.items()
        for at in range(len(words) - length + 1)
    )
