"""Questions and corpora: every format in, one schema out, a content hash as version.

`load_questions` and `load_corpus` find the format from the content. A row that cannot be read stays in the frame with a
reason in its `defect` column, so that validation quarantines it and the good rows go on; a file that cannot be read
raises DataError.
"""

from igpo_core.data.corpus import load_corpus
from igpo_core.data.questions import load_questions
from igpo_core.data.schema import (
    CORPUS_SCHEMA,
    QUESTION_SCHEMA,
    SPLITS,
    content_hash,
    identity_key,
    normalised,
    to_questions,
)

__all__ = [
    "CORPUS_SCHEMA",
    "QUESTION_SCHEMA",
    "SPLITS",
    "content_hash",
    "identity_key",
    "load_corpus",
    "load_questions",
    "normalised",
    "to_questions",
]
