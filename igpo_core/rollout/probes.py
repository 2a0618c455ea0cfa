"""Answer probes that ride in a prefill: the belief at a turn's boundary, read in the very pass that encodes its observation.

Behind the columns that a row really gets (prompt or observation) stand the probe's prefix, then each accepted answer.
They see the row's whole history, the prefix and their own answer; nothing sees them, and they leave the cache at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from igpo_core.protocol import AnswerProbe

_PREFIX = -1  # value of `answer` for tokens that all answers share


@dataclass(frozen=True)
class ProbeBlock:
    """The probes of every row of a batch, padded to equal width P and S scored tokens.

    tokens, offsets (place behind the history), [rows, P]; sees [rows, P, P]: which probe column sees which; at [rows, S]:
    the column that predicts a scored token, -1 for the last one of the history; targets [rows, S]; scored [rows, S]:
    False for padding. lengths: tokens of each answer, by row.
    """

    tokens: torch.Tensor
    offsets: torch.Tensor
    sees: torch.Tensor
    at: torch.Tensor
    targets: torch.Tensor
    scored: torch.Tensor
    lengths: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> int:
        """Return the columns of the probes' rectangle."""
        return self.tokens.shape[1]

    @staticmethod
    def of(rows: Sequence[Sequence[AnswerProbe]], pad: int, device: torch.device) -> "ProbeBlock":
        """Raises ValueError for a row without a probe, or whose probes do not share their prefix."""
        tokens: list[list[int]] = []
        offsets: list[list[int]] = []
        answers: list[list[int]] = []
        at: list[list[int]] = []
        targets: list[list[int]] = []
        for probes in rows:
            if not probes or any(probe.prefix_ids != probes[0].prefix_ids for probe in probes):
                raise ValueError("the probes of a question must be at least one and share their prefix")
            prefix = probes[0].prefix_ids
            ids, places, branch = (list(prefix), list(range(len(prefix))), [_PREFIX] * len(prefix))
            predicting: list[int] = []
            for number, probe in enumerate(probes):
                fed = probe.answer_ids[:-1]  # the last answer token is predicted, and predicts nothing
                predicting += [len(prefix) - 1, *range(len(ids), len(ids) + len(fed))]
                ids += fed
                places += range(len(prefix), len(prefix) + len(fed))
                branch += [number] * len(fed)
            tokens.append(ids)
            offsets.append(places)
            answers.append(branch)
            at.append(predicting)
            targets.append([token for probe in probes for token in probe.answer_ids])

        def table(values: list[list[int]], fill: int) -> torch.Tensor:
            width = max(map(len, values))
            return torch.tensor([row + [fill] * (width - len(row)) for row in values], dtype=torch.long, device=device)

        branch_of = table(answers, len(max(rows, key=len)))  # padding is a branch of its own: nothing real sees it
        width = branch_of.shape[1]
        own = branch_of[:, :, None] == branch_of[:, None, :]
        sees = (own | (branch_of == _PREFIX)[:, None, :]) & torch.ones(width, width, device=device).tril().bool()
        counts = torch.tensor([len(row) for row in targets], device=device)
        scored = torch.arange(int(counts.max()), device=device) < counts[:, None]
        return ProbeBlock(
            table(tokens, pad),
            table(offsets, 0),
            sees,
            table(at, 0),
            table(targets, 0),
            scored,
            tuple(tuple(len(probe.answer_ids) for probe in probes) for probes in rows),
        )

    def select(self, index: Sequence[int]) -> "ProbeBlock":
        """The block of these rows, in this order; a row may be taken several times."""
        rows = torch.tensor(index, device=self.tokens.device)
        return ProbeBlock(
            self.tokens[rows],
            self.offsets[rows],
            self.sees[rows],
            self.at[rows],
            self.targets[rows],
            self.scored[rows],
            tuple(self.lengths[i] for i in index),
        )

    def means(self, logprobs: Sequence[float]) -> list[tuple[float, ...]]:
        """By row and answer, from the log-probabilities of all scored tokens in order."""
        results, start = [], 0
        for lengths in self.lengths:
            own = []
            for length in lengths:
                own.append(math.fsum(logprobs[start : start + length]) / length)
                start += length
            results.append(tuple(own))
        return results
