"""A policy's model with a cache of slots: each holds the keys and values of one history, whatever the others do.

A pass appends blocks of tokens to some slots, of any lengths (prompts, observations, probes). A decoding step feeds one token to
every slot and samples the next one. On a GPU a step is a CUDA graph: all that it reads and writes lies in tensors that stay
where they are, so that the processor launches one thing a token and waits for nothing.
"""

import copy
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from igpo_core.attention import Packing, compiled_layers, moved, packing_layers, power_of_two
from igpo_core.models import text_config
from igpo_core.policies import Policy

BLOCK = 512  # tokens of the vocabulary that are summed up together where a token is drawn


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. budget: the most tokens of a turn."""

    temperature: float
    greedy: bool
    budget: int


@dataclass(frozen=True)
class Block:
    """Tokens that a pass appends to the history in a slot: behind its first `start` tokens."""

    slot: int
    start: int
    ids: Sequence[int]


def choose(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row and its log-probability. logits: [rows, vocabulary]; uniforms: [rows] float64, the place in
    the cumulative distribution where the token is taken.

    The distribution is summed up in blocks of BLOCK tokens, then inside one: one long sum a row keeps a GPU waiting. It gives
    the token that the long sum gives, unless the uniform number lies within rounding (1e-16) of a border.
    """
    logits = logits.float()
    if sampling.greedy:
        logprobs = torch.log_softmax(logits, -1)
        token = logprobs.argmax(-1)
        return token, logprobs.gather(1, token[:, None])[:, 0]
    logprobs = torch.log_softmax(logits / sampling.temperature, -1)
    mass = torch.nn.functional.pad(logprobs.double().exp(), (0, -logits.shape[1] % BLOCK))
    mass = mass.view(len(logits), -1, BLOCK)
    sums = mass.sum(-1).cumsum(-1)
    target = uniforms[:, None] * sums[:, -1:]
    block, target = _place(sums, target)
    before = torch.nn.functional.pad(sums, (1, 0)).gather(1, block)
    inside = mass.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1) + before
    place, _ = _place(inside, target)
    token = (block * BLOCK + place)[:, 0].clamp(max=logits.shape[1] - 1)
    return token, logprobs.gather(1, token[:, None])[:, 0]


def _place(sums: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first place of each row whose sum exceeds the target, and the target, kept below the row's last sum: what is found
    has a mass of its own."""
    target = torch.minimum(target, torch.nextafter(sums[:, -1:], torch.zeros_like(target)))
    # of sums that are no numbers nothing exceeds the target: the last place, and Row.append_turn says that they are none
    return torch.searchsorted(sums, target, right=True).clamp(max=sums.shape[-1] - 1), target


class SlotModel:
    """The model of a policy, `slots` histories of at most `capacity` tokens each, and the state of the turn in each slot.

    By slot: token: the newest one, which is not in the cache yet; lengths: tokens in the cache; active: whether its turn goes
    on; places: tokens of the turn so far; ids and logprobs: [slots, budget], these tokens; uniforms: [slots, budget].
    """

    def __init__(self, policy: Policy, slots: int, capacity: int, budget: int) -> None:
        """budget: the most tokens of a turn."""
        self.device: torch.device = policy.model.device
        self.model, self.slots, self.capacity, self.budget = policy.model, slots, capacity, budget
        self.twin, self._cast = _twin(policy.model) if policy.half else (policy.model, [])
        self.head = self.twin.get_output_embeddings()
        self._precision = policy.precision
        self._forwards, self._chosen = None, choose
        if self.device.type == "cuda":  # its kernels are small: what one of them can do for several is launched once
            join_projections(self.twin, {cast for _, cast in self._cast})
            self._forwards, self._chosen = compiled_layers(self.twin), torch.compile(choose)
        self._graphs: dict[tuple[int, Sampling], torch.cuda.CUDAGraph] = {}
        # one for all graphs: they run one after another, and nothing that a step leaves there is read after it
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        layers, (size, heads) = len(self.twin.get_decoder().layers), _key_shape(text_config(policy.model.config))
        kept = torch.bfloat16 if policy.half else torch.float32
        self.caches = [
            tuple(torch.zeros(slots * capacity, heads, size, dtype=kept, device=self.device) for _ in range(2))
            for _ in range(layers)
        ]

        def state(*shape: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=self.device)

        self.token, self.lengths, self.places = state(), state(), state()
        self.active = state(dtype=torch.bool)
        self.ids, self.logprobs = state(budget), state(budget, dtype=torch.float32)
        self.uniforms = state(budget, dtype=torch.float64)
        self.stops = torch.tensor(policy.end_ids, device=self.device)
        # sequences and slots of a decoding step, which stay the same
        self._each = torch.arange(slots + 1, device=self.device, dtype=torch.int32)
        self._firsts = torch.arange(slots, device=self.device) * capacity

    def refresh(self) -> None:
        """Take over the policy's weights of now. They are the trainer's own tensors, but for matrices that are kept in float32
        and computed in bfloat16: these are cast once here, not in every pass."""
        for own, cast in self._cast:
            cast.copy_(own)

    def feed(self, blocks: Sequence[Block]) -> torch.Tensor:
        """Append the blocks, of different slots, in one pass; hidden states [tokens of all blocks, width], block behind block."""
        lengths = [len(block.ids) for block in blocks]
        ends = [block.start + len(block.ids) for block in blocks]
        places = [place for block, end in zip(blocks, ends, strict=True) for place in range(block.start, end)]
        bases = [block.slot * self.capacity for block in blocks]
        positions = torch.tensor(places)
        columns = [base + place for base, block, end in zip(bases, blocks, ends, strict=True)
                   for place in range(block.start, end)]  # fmt: skip
        packing = Packing(
            starts=moved(torch.tensor([0, *lengths]).cumsum(0).int(), self.device),
            longest=max(2, power_of_two(max(lengths))),
            columns=moved(torch.tensor(columns), self.device),
            key_starts=moved(torch.tensor([*bases, self.slots * self.capacity], dtype=torch.int32), self.device),
            key_lengths=moved(torch.tensor(ends, dtype=torch.int32), self.device),
            longest_keys=self.capacity,
        )
        tokens = torch.tensor([token for block in blocks for token in block.ids])
        return self._forward(moved(tokens, self.device), moved(positions, self.device), packing)

    def copy(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Give each target slot the first `length` columns of its source slot."""
        theirs, ours = (torch.tensor(slots, device=self.device) for slots in (sources, targets))
        for layer in self.caches:
            for kept in layer:
                by_slot = kept.view(self.slots, self.capacity, *kept.shape[1:])
                by_slot[ours, :length] = by_slot[theirs, :length]

    def begin_turns(
        self, slots: Sequence[int], lengths: Sequence[int], tokens: Sequence[int], uniforms: torch.Tensor
    ) -> None:
        """Let a turn begin in these slots: histories of so many cached tokens, the token behind them, and the turn's uniform
        numbers, [slots, budget] float64."""
        rows = torch.tensor(slots, device=self.device)
        self.lengths[rows] = torch.tensor(lengths, device=self.device)
        self.token[rows] = torch.tensor(tokens, device=self.device)
        self.uniforms[rows, : uniforms.shape[1]] = uniforms.to(self.device)
        self.places[rows] = 0
        self.active[rows] = True

    def release(self, slots: Sequence[int]) -> None:
        """Make slots idle: what they hold costs a step nothing any more."""
        self.lengths[torch.tensor(slots, device=self.device)] = 0

    def decode(self, count: int, steps: int, sampling: Sampling) -> None:
        """Sample up to `steps` tokens in each of the first `count` slots whose turn goes on. A turn ends with a stop token or
        with its budget."""
        if self.device.type != "cuda":
            for _ in range(steps):
                self._step(count, sampling)
            return
        graph = self._graphs.get((count, sampling)) or self._captured(count, sampling)
        for _ in range(steps):
            graph.replay()

    def _captured(self, count: int, sampling: Sampling) -> torch.cuda.CUDAGraph:
        """A decoding step as a CUDA graph. What the steps before it change is put back."""
        kept = [(tensor, tensor.clone()) for tensor in self._state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles and initialises, which a graph must not hold
            for _ in range(3):
                self._step(count, sampling)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._step(count, sampling)
        for tensor, before in kept:
            tensor.copy_(before)
        self._graphs[count, sampling] = graph
        return graph

    @property
    def _state(self) -> list[torch.Tensor]:
        return [self.token, self.lengths, self.places, self.active, self.ids, self.logprobs]

    def _step(self, count: int, sampling: Sampling) -> None:
        """One token for each of the first `count` slots. Everything has the same shape every time, and nothing is read back.

        A slot whose turn is over takes part and changes nothing: its key goes behind its history, where the next block
        overwrites it.
        """
        token, lengths, places, active, ids, logprobs = (tensor[:count] for tensor in self._state)
        packing = Packing(
            starts=self._each[: count + 1],
            longest=1,
            columns=self._firsts[:count] + lengths,
            key_starts=self._each[: count + 1] * self.capacity,
            key_lengths=(lengths + 1).int(),
            longest_keys=self.capacity,
        )
        hidden = self._forward(token, lengths, packing)
        with self._precision():
            logits = self.head(hidden)
        place = places.clamp(max=sampling.budget - 1)[:, None]
        chosen, value = self._choose(logits, place, sampling)
        ids.scatter_(1, place, torch.where(active[:, None], chosen[:, None], ids.gather(1, place)))
        logprobs.scatter_(1, place, torch.where(active[:, None], value[:, None], logprobs.gather(1, place)))
        token.copy_(torch.where(active, chosen, token))
        lengths += active
        places += active
        active &= (chosen[:, None] != self.stops).all(1) & (places < sampling.budget)

    def _choose(
        self, logits: torch.Tensor, place: torch.Tensor, sampling: Sampling
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The token and its log-probability in each of the first slots; place: [slots, 1], the token's place in its turn."""
        return self._chosen(logits, self.uniforms[: len(place)].gather(1, place)[:, 0], sampling)

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, packing: Packing) -> torch.Tensor:
        decoder = self.twin.get_decoder()
        with self._precision(), packing_layers(self.twin, self._forwards), self._caches_in(decoder.layers):
            hidden: torch.Tensor = decoder(
                input_ids=tokens[None], position_ids=positions[None], use_cache=False, packing=packing
            ).last_hidden_state
        return hidden[0]

    @contextmanager
    def _caches_in(self, layers: Any) -> Iterator[None]:
        """Within the block each layer has its cache. It stays in a twin's layers, which go with this object; the policy's own
        outlive it, and would keep the cache."""
        for layer, (keys, values) in zip(layers, self.caches, strict=True):
            layer.self_attn.slot_keys, layer.self_attn.slot_values = keys, values
        try:
            yield
        finally:
            if self.twin is self.model:
                for layer in layers:
                    del layer.self_attn.slot_keys, layer.self_attn.slot_values


class _Joined(torch.nn.Module):
    """The first of several projections of the same input: it computes all of them, as one product, and keeps what the others
    give until they are asked, one after the other."""

    def __init__(self, parts: Sequence[torch.nn.Linear]) -> None:
        """The matrices of `parts` become parts of the joined one, so that whoever writes to them writes there."""
        super().__init__()
        self.sizes = [part.out_features for part in parts]
        self.weight = _laid_together([part.weight for part in parts])
        self.bias = None if parts[0].bias is None else _laid_together([part.bias for part in parts])
        self.kept: tuple[torch.Tensor, ...] = ()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.kept:
            raise RuntimeError("a projection that was computed with another one was not asked for")
        product = torch.nn.functional.linear(states, self.weight, self.bias)
        parts = torch.split(product, self.sizes, -1)
        self.kept = parts[1:]
        return parts[0]


class _Follower(torch.nn.Module):
    """A projection that _Joined has computed already."""

    def __init__(self, first: _Joined, names: Sequence[str], place: int) -> None:
        """names: of all that are joined, in order; place: of this one among them.

        forward raises RuntimeError in a layer that asks in another order, which would get what another projection gives.
        """
        super().__init__()
        self._first = [first]  # in a list, so that it is no module of this one too
        self._left = len(names) - place  # that are kept when it is this one's turn
        self._fault = (
            f"a layer asks for {names[place]} out of turn: rollout.engine.kind=continuous computes {', '.join(names)} as one "
            "product, for layers that ask in this order. Set rollout.engine.kind=transformers for this model"
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        (first,) = self._first
        if len(first.kept) != self._left:
            raise RuntimeError(self._fault)
        value, first.kept = first.kept[0], first.kept[1:]
        return value


def _laid_together(tensors: Sequence[torch.Tensor]) -> torch.nn.Parameter:
    """One tensor of all rows; the given ones become views of it."""
    joined = torch.cat([tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, torch.split(joined, [len(tensor) for tensor in tensors]), strict=True):
        tensor.data = view
    return torch.nn.Parameter(joined, requires_grad=False)


# Projections of one input in the order in which transformers' layers ask for them.
JOINABLE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def join_projections(model: torch.nn.Module, own: Set[torch.Tensor]) -> None:
    """Let the projections of one input be one product each, in place, in layers that name them as JOINABLE does and where they
    are plain matrices. own: tensors that nobody else computes with; others stay as they are."""
    for module in list(model.modules()):
        for names in JOINABLE:
            found = [getattr(module, name, None) for name in names]
            # an adapter is a subclass that computes more
            parts = [part for part in found if isinstance(part, torch.nn.Linear) and type(part) is torch.nn.Linear]
            alike = len({part.bias is None for part in parts}) == 1
            if len(parts) == len(names) and alike and all(part.weight in own for part in parts):
                first = _Joined(parts)
                setattr(module, names[0], first)
                for place, name in enumerate(names[1:], start=1):
                    setattr(module, name, _Follower(first, names, place))


def _key_shape(config: Any) -> tuple[int, int]:
    """Width of a head, and heads of keys."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size), int(getattr(config, "num_key_value_heads", config.num_attention_heads))


def _twin(model: Any) -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A model of the same tensors, but for the matrices of linear layers that are not bfloat16: these are cast, as autocast
    casts them in every pass. Also the pairs (own tensor, its cast). Embeddings, norms and the residual stay what they are in
    training, so that sampling rounds as training does."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, shared)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for own, other in zip(model.modules(), twin.modules(), strict=True):
        for name in ("weight", "bias"):
            tensor = getattr(own, name, None) if isinstance(own, torch.nn.Linear) else None
            if tensor is not None and tensor.dtype != torch.bfloat16:
                cast = torch.nn.Parameter(tensor.detach().bfloat16(), requires_grad=False)
                setattr(other, name, cast)
                pairs.append((tensor, cast))
    return twin, pairs
