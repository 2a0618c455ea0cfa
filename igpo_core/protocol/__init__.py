"""How a turn is written, a thought and then a tool call or an answer: for one token a word, and for models with a chat template.

A protocol renders prompts, observations, demonstrations and answer probes to token ids and parses what was sampled. Sampled ids
stay as they are; the arguments or the answer that are read from them are in one_form.
Text from outside (questions, passages, answers, web pages) goes through `neutralise` and can never become a control
token; that is checked on the ids of every observation, not only on its text.
"""

from igpo_core.protocol.base import MARKERS, AnswerProbe, TurnProtocol, behind_prefix, with_shared_prefix
from igpo_core.protocol.chat import ChatProtocol
from igpo_core.protocol.words import WordProtocol

__all__ = [
    "MARKERS",
    "AnswerProbe",
    "ChatProtocol",
    "TurnProtocol",
    "WordProtocol",
    "behind_prefix",
    "with_shared_prefix",
]
