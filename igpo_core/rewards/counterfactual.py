"""Histories that did not happen: another observation in a turn's place, or a turn left out. Token ids in, token ids out."""

from collections.abc import Sequence

from igpo_core.protocol import TurnProtocol
from igpo_core.seeds import python_rng
from igpo_core.trajectory import Trajectory


def without_each_turn(item: Trajectory) -> list[list[int]]:
    """For each turn t < T: the history h_{T-1} without turn t and its observation."""
    end = item.cuts[-1]
    return [[*item.token_ids[: turn.start], *item.token_ids[turn.observation_end : end]] for turn in item.turns[:-1]]


def without_observations(protocol: TurnProtocol, trajectories: Sequence[Trajectory]) -> list[list[list[int]]]:
    """Return histories[i][t]: h_t with nothing, framed as the template frames it, for turn t's observation, for each t < T."""
    empty = protocol.observation("")
    return [[[*item.token_ids[: turn.end], *empty] for turn in item.turns[:-1]] for item in trajectories]


def with_others_observations(
    trajectories: Sequence[Trajectory], count: int, key: tuple[int, int]
) -> list[list[list[list[int]]]]:
    """Return histories[i][t]: h_t with each of `count` other observations in the place of turn t's, for each turn t < T.

    They are those that calls of other questions of the batch returned, the nearest in length, ties drawn with key = (seed,
    step); none that makes a history longer than the batch's longest trajectory, which is known to fit. Fewer, or none, where
    fewer were returned.
    """
    limit = max(len(item.token_ids) for item in trajectories)
    by_question: dict[str, set[tuple[int, ...]]] = {}
    for item in trajectories:
        returned = {item.token_ids[turn.end : turn.observation_end] for turn in item.turns[:-1]}
        by_question.setdefault(item.question.id, set()).update(returned)
    every = set().union(*by_question.values())
    seed, step = key
    histories = []
    for i, item in enumerate(trajectories):
        others = sorted(every - by_question[item.question.id])
        python_rng(seed, "counterfactual", step, i).shuffle(others)
        row = []
        for turn in item.turns[:-1]:
            length = turn.observation_end - turn.end
            fitting = [ids for ids in others if turn.end + len(ids) <= limit]
            chosen = sorted(fitting, key=lambda ids: abs(len(ids) - length))[:count]
            row.append([[*item.token_ids[: turn.end], *ids] for ids in chosen])
        histories.append(row)
    return histories
