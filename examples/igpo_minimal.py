"""IGPO in one file: train a search agent that is rewarded for its answer and for what each search taught it.

    python examples/igpo_minimal.py     # about a minute of one CPU core; needs torch and transformers alone

Source: Wang et al., "Information Gain-based Policy Optimization", arXiv 2510.14967v2, whose equation numbers stand at
each step. igpo_core does the same, faster and with choices. tests/igpo_core/test_minimal_example.py holds both equal.

Shape suffixes of tensors, and of nested lists, whose rows differ in length:
    I  trajectories of a step    T  turns of a trajectory
    B  sequences of a batch      S  tokens of the longest sequence    V  words of the vocabulary
"""

import copy
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers import LlamaForCausalLM as LM

QUESTIONS, GROUP_SIZE = 8, 8  # of a step; a group is the trajectories of one question
MAX_TURNS, MAX_NEW_TOKENS = 4, 6  # turns of a trajectory, the answer's included; sampled tokens of a turn
FLOOR = 1e-4  # added to a standard deviation, so that rounding is not blown up; the authors' code has about as much
PENALTY = -1.0  # outcome of a trajectory without a well-formed answer; -2 in the authors' code
GAMMA, CLIP, KL = 1.0, 0.2, 0.001  # discount of later turns; range of the ratio; weight of the divergence

# ---------------------------------------------------------------------------------------------------------- world
# A question asks for something that has two parts. A search finds one fact about one person: the policy writes
# "search city of ann <end>", the tool returns "result city-3 <end>". The policy ends with "answer street-5 city-3 <end>".

PEOPLE = ["ann", "bob", "cal", "dee", "eve", "fay", "gus", "hal"]
PARTS = {"address": ("street", "city"), "lunch": ("dish", "drink")}
FACTS = {fact: [f"{fact}-{number}" for number in range(6)] for pair in PARTS.values() for fact in pair}
FORM = ["<pad>", "<end>", "question", "of", "?", "search", "result", "nothing", "answer"]
WORDS = [*FORM, *PEOPLE, *PARTS, *FACTS, *itertools.chain(*FACTS.values())]
TOKENS = {word: token for token, word in enumerate(WORDS)}
PAD, END = TOKENS["<pad>"], TOKENS["<end>"]


def encode(text: str) -> list[int]:
    """Return one token for each word."""
    return [TOKENS[word] for word in text.split()]


@dataclass(frozen=True)
class Question:
    """A question with the world that it is asked in."""

    text: str  # "question address of ann ?"
    answer: str  # "street-5 city-3"
    results: dict[str, str]  # what the search tool returns for a query: {"city of ann": "city-3", ...}


def draw_question(rng: random.Random) -> Question:
    """Return a question about one person, whose facts are drawn anew, so that none can be memorised."""
    person, thing = rng.choice(PEOPLE), rng.choice(list(PARTS))
    known = {fact: rng.choice(values) for fact, values in FACTS.items()}
    answer = " ".join(known[part] for part in PARTS[thing])
    return Question(f"question {thing} of {person} ?", answer, {f"{fact} of {person}": known[fact] for fact in known})


# --------------------------------------------------------------------------------------------------------- policy
SHAPE = LlamaConfig(
    vocab_size=len(WORDS), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    initializer_range=0.1,
)  # fmt: skip


def padded(sequences: list[list[int]]) -> Tensor:
    """Return tokens_BS, padded on the right: attention is causal, so no token sees a pad."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in sequences], True, PAD)


def token_logprobs(policy: LM, sequences: list[list[int]]) -> Tensor:
    """Return logprobs_BS: at place k of a sequence log pi(token k | tokens before k), at place 0 nothing (0)."""
    tokens_BS = padded(sequences)
    logits_BSV = policy(input_ids=tokens_BS, use_cache=False).logits
    logprobs_BS = logits_BSV[:, :-1].log_softmax(-1).gather(-1, tokens_BS[:, 1:, None])[:, :, 0]
    return torch.nn.functional.pad(logprobs_BS, (1, 0))


# -------------------------------------------------------------------------------------------------------- rollout
@dataclass
class Trajectory:
    """What a rollout leaves behind: the tokens as they were sampled, and where."""

    question: Question
    tokens: list[int]  # the question, then each turn and the result of its search; the last turn has no result
    turns: list[tuple[int, int]] = field(default_factory=list)  # [start, end) of the tokens sampled in each turn
    answer: str | None = None  # None where the last turn is malformed, or one search too many


def rollout(agent: Callable[[list[Trajectory]], list[list[int]]], questions: list[Question]) -> list[Trajectory]:
    """Return one trajectory for each question. The agent returns the tokens of each trajectory's next turn."""
    trajectories = running = [Trajectory(question, encode(question.text)) for question in questions]
    for turns_left in reversed(range(MAX_TURNS)):
        searching = []
        for item, turn in zip(running, agent(running), strict=True):
            item.turns.append((len(item.tokens), len(item.tokens) + len(turn)))
            item.tokens += turn
            verb, *words = (WORDS[token] for token in turn)
            if verb == "search" and turn[-1] == END and turns_left:
                item.tokens += encode(f"result {item.question.results.get(' '.join(words[:-1]), 'nothing')} <end>")
                searching.append(item)
            elif verb == "answer" and turn[-1] == END:
                item.answer = " ".join(words[:-1])
        running = searching
    return trajectories


@torch.no_grad()
def sample_turns(policy: LM, trajectories: list[Trajectory]) -> list[list[int]]:
    """Return a sampled turn for each trajectory: tokens up to <end>, at most MAX_NEW_TOKENS."""
    turns: list[list[int]] = [[] for _ in trajectories]
    while open_turns := [i for i, turn in enumerate(turns) if turn[-1:] != [END] and len(turn) < MAX_NEW_TOKENS]:
        sequences = [trajectories[i].tokens + turns[i] for i in open_turns]
        logits_BSV = policy(input_ids=padded(sequences), use_cache=False).logits
        logits_BV = logits_BSV[range(len(sequences)), [len(tokens) - 1 for tokens in sequences]]
        for i, token in zip(open_turns, torch.multinomial(logits_BV.softmax(-1), 1)[:, 0].tolist(), strict=True):
            turns[i].append(token)
    return turns


# -------------------------------------------------------------------------------------------------------- rewards
@torch.no_grad()
def beliefs(policy: LM, histories: list[list[int]], answer: list[int]) -> list[float]:
    """Return s_t for each history: how likely the policy is to answer rightly if it has to answer now.

    Eq. 3: s_t = 1/L sum_j log pi(a_j | history, "answer", a_<j), the mean over the L tokens of the right answer.
    """
    sequences = [history + encode("answer") + answer for history in histories]
    logprobs_BS, L = token_logprobs(policy, sequences), len(answer)
    return [logprobs_BS[b, len(tokens) - L : len(tokens)].mean().item() for b, tokens in enumerate(sequences)]


def f1(answer: str, right_answer: str) -> float:
    """Return the F1 of the words of an answer."""
    given, right = answer.split(), right_answer.split()
    return 2 * (Counter(given) & Counter(right)).total() / (len(given) + len(right))


def rewards(policy: LM, item: Trajectory) -> list[float]:
    """Return the rewards of T turns: a gain for each of the T-1 searches, and the outcome for the last turn."""
    s_T = beliefs(policy, [item.tokens[:start] for start, _ in item.turns], encode(item.question.answer))
    gains = [after - before for before, after in itertools.pairwise(s_T)]  # Eq. 4: g_t = s_t - s_(t-1)
    outcome = PENALTY if item.answer is None else f1(item.answer, item.question.answer)  # Eq. 2
    return [*gains, outcome]


# ----------------------------------------------------------------------------------------------------- advantages
def normalise(pool: list[float]) -> list[float]:
    """Return (reward - mean) / (std + FLOOR) for each reward, and zeros where all are equal."""
    if len(set(pool)) < 2:
        return [0.0] * len(pool)
    mean = sum(pool) / len(pool)  # taking it off a good gain makes long trajectories pay: docs/arms.md
    std = (sum((reward - mean) ** 2 for reward in pool) / len(pool)) ** 0.5
    return [(reward - mean) / (std + FLOOR) for reward in pool]


def turn_advantages(rewards_IT: list[list[float]], groups_I: list[int]) -> list[list[float]]:
    """Return one advantage for each turn. groups_I: the question of each trajectory."""
    advantages_IT: list[list[float]] = [[] for _ in rewards_IT]
    for group in set(groups_I):
        members = [i for i, other in enumerate(groups_I) if other == group]
        # Eq. 5: the gains of all turns of all trajectories of the group in one pool, their outcomes in another
        gains = iter(normalise([gain for i in members for gain in rewards_IT[i][:-1]]))
        outcomes = iter(normalise([rewards_IT[i][-1] for i in members]))
        for i in members:
            z_T = [*itertools.islice(gains, len(rewards_IT[i]) - 1), next(outcomes)]
            turns = range(len(z_T))
            # Eq. 6: A_t = sum over k >= t of gamma^(k-t) z_k
            advantages_IT[i] = [sum(GAMMA ** (k - t) * z_T[k] for k in turns[t:]) for t in turns]
    return advantages_IT


# ----------------------------------------------------------------------------------------------------------- loss
def igpo_loss(
    policy: LM, old_policy: LM, reference: LM, trajectories: list[Trajectory], advantages_IT: list[list[float]]
) -> Tensor:
    """Return minus the clipped surrogate, plus KL times the divergence from the reference policy (Eq. 7)."""
    sequences = [item.tokens for item in trajectories]
    logprobs_IS = token_logprobs(policy, sequences)
    with torch.no_grad():
        old_IS, reference_IS = token_logprobs(old_policy, sequences), token_logprobs(reference, sequences)
    advantages_IS, weights_IS = torch.zeros_like(old_IS), torch.zeros_like(old_IS)
    for i, item in enumerate(trajectories):
        sampled = sum(end - start for start, end in item.turns)
        for (start, end), advantage in zip(item.turns, advantages_IT[i], strict=True):
            advantages_IS[i, start:end] = advantage  # of every token that was sampled in the turn
            weights_IS[i, start:end] = 1 / sampled / len(trajectories)  # questions and results weigh nothing
    ratio_IS = (logprobs_IS - old_IS).exp()
    surrogate_IS = torch.minimum(ratio_IS * advantages_IS, ratio_IS.clamp(1 - CLIP, 1 + CLIP) * advantages_IS)
    difference_IS = reference_IS - logprobs_IS
    kl_IS = difference_IS.exp() - difference_IS - 1  # the estimator k3: never negative, and right in the mean
    return -(weights_IS * (surrogate_IS - KL * kl_IS)).sum()


# -------------------------------------------------------------------------------------------------- training loop
def careless_turns(rng: random.Random, trajectories: list[Trajectory]) -> list[list[int]]:
    """Return turns with the right form and no skill: they search for any fact, and guess what they did not find."""
    turns = []
    for item in trajectories:
        text = f"search {rng.choice(list(item.question.results))} <end>"
        if len(item.turns) == MAX_TURNS - 1 or rng.random() < 0.3:
            parts = zip(PARTS[item.question.text.split()[1]], item.question.answer.split(), strict=True)
            said = [right if TOKENS[right] in item.tokens else rng.choice(FACTS[part]) for part, right in parts]
            text = f"answer {' '.join(said)} <end>"
        turns.append(encode(text))
    return turns


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Move the weights one step against the gradient of the loss."""
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()


def train(seed: int = 0, warm_start: int = 250, steps: int = 60) -> Iterator[tuple[float, float]]:
    """Yield (mean F1, mean gain of a search) of each step's trajectories. The questions of a step are new ones."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    policy = LM(SHAPE)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(warm_start):  # imitation: the form of a turn, and how what was found becomes an answer
        shown = rollout(lambda items: careless_turns(rng, items), [draw_question(rng) for _ in range(64)])
        logprobs_IS = token_logprobs(policy, [item.tokens for item in shown])
        said = [logprobs_IS[i, start:end] for i, item in enumerate(shown) for start, end in item.turns]
        update(optimizer, -torch.cat(said).mean())
    reference = copy.deepcopy(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    groups_I = [group for group in range(QUESTIONS) for _ in range(GROUP_SIZE)]
    for _ in range(steps):
        questions = [draw_question(rng) for _ in range(QUESTIONS)]
        trajectories = rollout(lambda items: sample_turns(policy, items), [questions[group] for group in groups_I])
        rewards_IT = [rewards(policy, item) for item in trajectories]
        # With one update a step the old policy is that of now: the ratio is 1 and nothing is clipped.
        update(optimizer, igpo_loss(policy, policy, reference, trajectories, turn_advantages(rewards_IT, groups_I)))
        gains = [gain for row in rewards_IT for gain in row[:-1]]
        yield sum(max(0.0, row[-1]) for row in rewards_IT) / len(rewards_IT), sum(gains) / max(1, len(gains))


if __name__ == "__main__":
    torch.set_num_threads(1)  # more are slower for a model as small as this
    for step, (mean_f1, mean_gain) in enumerate(train(), 1):
        print(f"step {step:2}   F1 {mean_f1:.3f}   mean gain of a search {mean_gain:+.3f} nats", flush=True)
