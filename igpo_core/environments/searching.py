"""What environments of search questions share: the tool, the rubric, and how answers are compared."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from igpo_core.environments.base import Environment, Interface, Need, Parameter, Tool
from igpo_core.rewards.outcome import answer_f1, exact_match, paper_f1_score, squad_normalise
from igpo_core.trajectory import Episode, Question, ToolCall

SYSTEM_PROMPT = """You answer questions by searching. In every turn think first, between <think> and </think>.
Then either call the search tool once, or give the final answer between <answer> and </answer>.
Keep the answer as short as possible: a name, a number, a date, or yes or no."""
SEARCH_TOOL = Tool(
    "search", "Search the passages and return the best matches.", (Parameter("query", "What to look for."),)
)
OPEN_TOOL = Tool(
    "open", "Show more of the passages with a title that a search returned.", (Parameter("title", "The whole title."),)
)
RUBRIC: Mapping[str, str] = MappingProxyType({"f1": "F1", "em": "EM", "paper_f1": "F1 of the paper"})
OFFERS: frozenset[Need] = frozenset({"beliefs", "other_answers", "exposure", "states", "demonstrations"})
NEVER_SHOWN = ("", "yes", "no")  # yes and no are in most texts
SEARCH = Interface(SYSTEM_PROMPT, (SEARCH_TOOL,), "Now there's enough information to answer")  # the authors' wording
SEARCH_IN_A_WORLD = Interface(SYSTEM_PROMPT, (SEARCH_TOOL,), "done")


def with_tools(interface: Interface, *tools: Tool) -> Interface:
    """Return the interface with further tools, and a system prompt that tells of several."""
    prompt = interface.system_prompt.replace("call the search tool once", "call one of the tools once")
    return replace(interface, system_prompt=prompt, tools=(*interface.tools, *tools))


def search_for(query: str) -> ToolCall:
    """Return the call of the search tool."""
    return ToolCall("search", {"query": query})


class SearchEnvironment(Environment):
    """Questions whose answers are short texts."""

    def rubric(self, episode: Episode) -> dict[str, float]:
        """Return F1 and exact match by the rule of the question's source, and the authors' F1."""
        assert episode.answer is not None
        question = episode.question
        return {
            "f1": answer_f1(episode.answer, question),
            "em": exact_match(episode.answer, question.answers),
            "paper_f1": paper_f1_score(episode.answer, question.answers),
        }

    def comparable(self, text: str) -> str:
        """Return the text as SQuAD's evaluation compares it."""
        return squad_normalise(text)

    def exposes(self, question: Question, observation: str) -> bool:
        """Return whether an accepted answer stands in the observation as whole words (TSPO, arXiv 2601.22776)."""
        text = f" {squad_normalise(observation)} "
        return any(
            f" {answer} " in text for answer in map(squad_normalise, question.answers) if answer not in NEVER_SHOWN
        )

    def state_key(self, question: Question, observations: Sequence[str]) -> Hashable:
        """Return the set of observations: what has been seen, in whatever order."""
        return frozenset(observations)
