"""Belief scoring of finished trajectories against one plain forward pass a turn, and what a belief may depend on."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from igpo_core.rewards.gains import LogProbDiff, ProbDiff, belief
from igpo_core.rewards.information_gain import AnswerProbe, answer_log_likelihoods, score_beliefs

VOCABULARY = 53


def tiny_model(kind: str) -> Any:
    torch.manual_seed(3)
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    config = LlamaConfig(**shape) if kind == "llama" else Qwen2Config(**shape)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # larger weights than the initial 0.02: log-probs must differ visibly between histories
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.eval()


MODELS = {kind: tiny_model(kind) for kind in ("llama", "qwen2")}


@torch.no_grad()
def plain(model: Any, history: list[int], probe: AnswerProbe, *, pad_left: int = 0) -> float:
    """One ordinary forward pass over history, prefix and answer, alone or left-padded with its own attention mask."""
    tokens = [*history, *probe.prefix_ids, *probe.answer_ids]
    ids = torch.tensor([[0] * pad_left + tokens])
    mask = torch.tensor([[0] * pad_left + [1] * len(tokens)])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)
    last = ids.shape[1]
    places = range(last - len(probe.answer_ids), last)
    return sum(float(logprobs[k - 1, ids[0, k]]) for k in places) / len(probe.answer_ids)


def make_batch(seed: int, turns: list[int], lengths: tuple[int, int] = (3, 12)) -> tuple[list, list, list]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    sequences, cuts, probes = [], [], []
    for count in turns:
        edges = [draw(*lengths)]
        for _ in range(count - 1):
            edges.append(edges[-1] + draw(*lengths))
        total = edges[-1] + draw(0, 9)  # tokens of a last turn, in no belief
        sequences.append([draw(1, VOCABULARY - 1) for _ in range(total)])
        cuts.append(edges)
        prefix = [draw(1, VOCABULARY - 1) for _ in range(draw(0, 4))]
        probes.append(AnswerProbe(prefix, [draw(1, VOCABULARY - 1) for _ in range(draw(1, 5))], [1, 2]))
    return sequences, cuts, probes


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("max_tokens", [None, 1, 120])
def test_equals_one_plain_forward_a_turn(kind: str, max_tokens: int | None) -> None:
    sequences, cuts, probes = make_batch(0, [1, 2, 4, 7, 16, 3])
    scores = answer_log_likelihoods(MODELS[kind], sequences, cuts, probes, max_tokens=max_tokens)
    assert [len(row) for row in scores] == [1, 2, 4, 7, 16, 3]
    for i, row in enumerate(scores):
        for c, value in zip(cuts[i], row, strict=True):
            assert value == pytest.approx(plain(MODELS[kind], sequences[i][:c], probes[i]), abs=1e-5)
            assert value == pytest.approx(plain(MODELS[kind], sequences[i][:c], probes[i], pad_left=5), abs=1e-5)
    assert max(row[-1] for row in scores) - min(row[-1] for row in scores) > 0.1  # the comparison is not of constants


@pytest.mark.parametrize("kind", MODELS)
def test_a_belief_is_independent_of_batch_mates_and_their_order(kind: str) -> None:
    sequences, cuts, probes = make_batch(1, [5, 2, 3])
    alone = [
        answer_log_likelihoods(MODELS[kind], [s], [c], [p])[0] for s, c, p in zip(sequences, cuts, probes, strict=True)
    ]
    long = make_batch(9, [16], lengths=(15, 20))
    for order in ([0, 1, 2], [2, 0, 1]):
        mixed = [
            [*(part[i] for i in order), extra[0]] for part, extra in zip((sequences, cuts, probes), long, strict=True)
        ]
        together = answer_log_likelihoods(MODELS[kind], *mixed)
        for place, i in enumerate(order):
            assert together[place] == pytest.approx(alone[i], abs=1e-5)


def test_a_belief_does_not_see_what_comes_after_its_cut() -> None:
    sequences, cuts, probes = make_batch(2, [4])
    before = answer_log_likelihoods(MODELS["llama"], sequences, cuts, probes)[0]
    changed = [list(sequences[0])]
    changed[0][cuts[0][1]] = changed[0][cuts[0][1]] % (VOCABULARY - 2) + 1  # first token behind the second cut
    assert changed != sequences
    after = answer_log_likelihoods(MODELS["llama"], changed, cuts, probes)[0]
    assert after[:2] == pytest.approx(before[:2], abs=1e-5)
    assert abs(after[2] - before[2]) > 1e-4


def test_several_answers_share_a_history() -> None:
    sequences, cuts, _ = make_batch(3, [3, 5])
    prefix = (7, 8)
    answers = [AnswerProbe(prefix, (4,)), AnswerProbe(prefix, (5, 6, 9)), AnswerProbe(prefix, (4, 4))]
    scores = score_beliefs(MODELS["qwen2"], sequences, cuts, [answers, answers[:2]])
    assert [[len(by_answer) for by_answer in row] for row in scores] == [[3] * 3, [2] * 5]
    for i, own in enumerate((answers, answers[:2])):
        for c, by_answer in zip(cuts[i], scores[i], strict=True):
            expected = [plain(MODELS["qwen2"], sequences[i][:c], probe) for probe in own]
            assert by_answer == pytest.approx(expected, abs=1e-5)


def test_a_uniform_model_gives_minus_log_vocabulary() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    value = answer_log_likelihoods(model, [[1, 2, 3]], [[2]], [AnswerProbe([4], [5, 6])])
    assert value == [[pytest.approx(-math.log(VOCABULARY), abs=1e-6)]]


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ([[2, 2]], "increase"),
        ([[3, 2]], "increase"),
        ([[0]], "within"),
        ([[9]], "within"),
        ([[1], [1]], "lists of cuts"),
    ],
)
def test_cuts_that_cannot_be_are_refused(cuts: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        answer_log_likelihoods(MODELS["llama"], [[1, 2, 3]], cuts, [AnswerProbe([4], [5])])


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one answer token"):
        AnswerProbe([1], [])


def test_aliases() -> None:
    scores, lengths = [-1.0, -2.0, -1.5], [4, 1, 1]
    assert belief(scores, lengths, "first") == -1.0
    assert belief(scores, lengths, "max") == -1.0
    assert belief(scores, lengths, "shortest") == -2.0  # the first of the two with one token
    # of whole answers: e^(4 * -1) + e^-2 + e^-1.5 = 0.0183156 + 0.1353353 + 0.2231302 = 0.3767811; its log is -0.9760911,
    # and the likeliest answer, the third, has one token
    assert belief(scores, lengths, "logsumexp") == pytest.approx(-0.9760911, abs=1e-6)
    # e^-0.5 + e^-3 = 0.6065307 + 0.0497871 = 0.6563177; its log is -0.4211103, over the five tokens of the likeliest
    assert belief([-0.1, -3.0], [5, 1], "logsumexp") == pytest.approx(-0.4211103 / 5, abs=1e-6)
    assert belief([-1.7], [10], "logsumexp") == -1.7  # of one answer it is the mean
    with pytest.raises(ValueError, match="first, logsumexp, max, shortest"):
        belief(scores, lengths, "mean")  # type: ignore[arg-type]


def test_a_long_alias_hides_no_short_one() -> None:
    """One token goes from 1e-4 to .9. The first of another alias's ten is as unsure, and the others are certain."""
    lengths = [1, 10]
    before, after = (belief([math.log(p), math.log(p) / 10], lengths, "logsumexp") for p in (1e-4, 0.9))
    # both are as likely: log 2 besides at either end, so that the gain is log(.9 / 1e-4) = 9.1049799 again
    assert LogProbDiff().gains([before, after]) == pytest.approx([9.1049799], abs=1e-6)


def test_gains_by_hand() -> None:
    beliefs = [math.log(0.1), math.log(0.4), math.log(0.2)]
    assert ProbDiff().gains(beliefs) == pytest.approx([0.3, -0.2])
    assert LogProbDiff().gains(beliefs) == pytest.approx([math.log(4), -math.log(2)])


@given(st.lists(st.floats(-30, 0), min_size=1, max_size=12))
def test_gains_telescope(beliefs: list[float]) -> None:
    assert sum(LogProbDiff().gains(beliefs)) == pytest.approx(beliefs[-1] - beliefs[0], abs=1e-9)
