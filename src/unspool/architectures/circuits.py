"""Circuits as a language model: a circuit goes in, an equivalent one comes out, token by token.

The prompt is an expression, an AIGER text or a truth table (:mod:`unspool.circuits.reading`). The encoder reads its
trees; what is don't-care is no business of the network's, but of the constraint ``circuit-transformer``. The decoder
writes trees in preorder, and the tokenizer turns them into expressions, gates that compute the same being shared.

By itself the network promises nothing: with the constraint no output differs from its prompt in a row that matters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from unspool.architectures._circuit_network import CircuitNetwork, Shape, need_features, position_features
from unspool.circuits.cutoff import Place
from unspool.circuits.expressions import write_expressions
from unspool.circuits.reading import read
from unspool.circuits.sequence import EOS, PAD, VOCABULARY, Task, circuit_of, circuit_part, problem, task_of, unfinished
from unspool.circuits.tables import CircuitError
from unspool.core.errors import Incompatible, InvalidInput, WeightsError
from unspool.core.model import Cache, Capability, LanguageModel
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.core.tree import ROOT
from unspool.models.checks import check
from unspool.models.kv import KVCache, KVPool
from unspool.models.storage import write_whole

NAME = "circuits"


class CircuitTokenizer:
    """Text to trees and back.

    Attributes:
        whole: a text is known when all its tokens are: a gate's name depends on what follows.
    """

    chats = False
    whole = True

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def __eq__(self, other: object) -> bool:
        """Whether the tokens are the same; how many of them a model reads is another matter."""
        return isinstance(other, CircuitTokenizer)

    def __hash__(self) -> int:
        return hash(VOCABULARY)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The tokens of a problem.

        Raises:
            CircuitError: if the text is no circuit, or one that is too large.
        """
        asked = read(text)
        tokens = problem(asked.circuit, asked.free_circuit)
        self.check(tokens)
        return tokens

    def check(self, tokens: Sequence[int]) -> Task:
        """What the tokens of a problem ask for.

        Raises:
            CircuitError: if they are none, or it is too large.
        """
        length = len(circuit_part(tokens))
        if length > self.shape.source:
            raise CircuitError(
                f"as trees the circuit has {length} nodes; this model reads {self.shape.source}: "
                "give a smaller circuit, or its truth table"
            )
        _, task = task_of(tokens)
        if task.inputs > self.shape.inputs:
            raise CircuitError(
                f"the circuit reads x{task.inputs - 1}; this model was made for {self.shape.inputs} inputs, "
                f"x0 to x{self.shape.inputs - 1}"
            )
        return task

    def decode(self, ids: Sequence[int]) -> str:
        """An expression; of an unfinished tree its beginning, with ``?`` where an operand is missing."""
        body = circuit_part([token for token in ids if token != PAD])
        found = circuit_of(body)
        finished = write_expressions(found.circuit) if found.circuit.outputs else ""
        rest = unfinished(body)
        if not rest:
            return finished
        return f"{finished}{'; ' if finished else ''}y{len(found.circuit.outputs)} = {rest}"


@dataclass
class Source:
    """What the encoder read.

    Args:
        task: what it asks for.
        memory: of every layer of the decoder keys and values ``[H, S, D]``.
    """

    task: Task
    memory: list[tuple[Tensor, Tensor]]

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.memory)


class CircuitCache(KVCache):
    """A decoder's cache with what the encoder read, and where the text stands after every token.

    Attributes:
        places: after each committed token; ``scored_places``: after each node of the tree scored last.
    """

    def __init__(self, pool: KVPool, slot: int) -> None:
        super().__init__(pool, slot)
        self.source: Source = Source(Task(0, (), ()), [])
        self.places: list[Place] = []
        self.scored_places: list[Place] = []

    @property
    def place(self) -> Place:
        """Where the committed text stands."""
        return self.places[-1] if self.places else Place(self.source.task)

    def commit(self, path: Sequence[int]) -> None:
        nodes = list(path)
        super().commit(nodes)
        self.places += [self.scored_places[node] for node in nodes]
        self.scored_places = []

    def fork(self) -> CircuitCache:
        twin = self.pool.fork(self)
        assert isinstance(twin, CircuitCache)
        twin.source, twin.places = self.source, list(self.places)
        return twin

    def rewind(self, length: int) -> None:
        super().rewind(length)
        del self.places[length:]
        self.scored_places = []

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.source.nbytes


class CircuitPool(KVPool):
    """Slots of :class:`CircuitCache`."""

    def claim(self) -> CircuitCache:
        cache = CircuitCache(self, len(self.owners))
        self.owners.append(cache)
        return cache


@dataclass
class _Batch:
    """Sources of the batch that was scored last, padded to one length."""

    sources: list[Source] = field(default_factory=list)
    memory: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    real: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))


class CircuitModel(LanguageModel):
    """A network of circuits behind the interface of all models.

    Args:
        network: put into evaluation mode.
        name: what to call it in messages.
    """

    def __init__(self, network: CircuitNetwork, name: str = NAME) -> None:
        self.network = network.eval()
        self.shape = network.shape
        self.name = name
        self.vocab_size = VOCABULARY
        self.context_length = self.shape.context
        self.tokenizer = CircuitTokenizer(self.shape)
        self.stop_tokens = frozenset({EOS})
        self.capabilities = frozenset({Capability.TREE, Capability.ENCODER})
        weight = next(network.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self._last = _Batch()

    # -- starting -------------------------------------------------------------------------------------------------

    def new_caches(self, count: int) -> list[Cache]:
        """Caches of a circuit without outputs, which is finished before it begins."""
        pool = CircuitPool()
        return [pool.claim() for _ in range(count)]

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Cache, list[int]]]:
        # Padding alone is no circuit; it is what passes are timed with.
        idle = [all(token == PAD for token in prompt) for prompt in prompts]
        pairs = list(zip(prompts, idle, strict=True))
        tasks = [Task(0, (), ()) if nothing else self.tokenizer.check(prompt) for prompt, nothing in pairs]
        read = [list(prompt)[: self.shape.source] if nothing else circuit_part(prompt) for prompt, nothing in pairs]
        tokens, features, real = padded(read)
        encoded = self.network.encode(
            tokens.to(self.device), features.to(self.device, self.dtype), real.to(self.device)
        )
        memory = self.network.memory(encoded)
        pool = CircuitPool()
        started: list[tuple[Cache, list[int]]] = []
        for row, (task, body) in enumerate(zip(tasks, read, strict=True)):
            cache = pool.claim()
            own = [(keys[row, :, : len(body)].clone(), values[row, :, : len(body)].clone()) for keys, values in memory]
            cache.source = Source(task, own)
            started.append((cache, [PAD]))
        return started

    # -- scoring --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        caches: list[CircuitCache] = [request.cache for request in requests]  # type: ignore[misc]
        check(self, requests, caches, layers)
        if want.hidden or want.attentions or want.split or want.queries:
            raise Incompatible(f"{self.name} is a network of circuits; it gives logits only")
        if any(request.inputs is not None for request in requests):
            raise Incompatible(f"{self.name} takes tokens, not input embeddings")
        counts = [len(request.tree) - request.known for request in requests]
        width = max(counts)
        starts = [cache.held + request.known for cache, request in zip(caches, requests, strict=True)]
        end = max(start + count for start, count in zip(starts, counts, strict=True))
        tokens = torch.zeros(len(requests), width, dtype=torch.int64)
        mask = torch.zeros(len(requests), width, end, dtype=torch.bool)
        places: list[Place] = []
        for row, (request, cache, count) in enumerate(zip(requests, caches, counts, strict=True)):
            tree, known, held = request.tree, request.known, cache.held
            tokens[row, :count] = tree.tokens[known:]
            mask[row, :count, :held] = True
            mask[row, :count, held : held + len(tree)] = tree.mask[known:]
            mask[row, count:, 0] = True  # A padding row must see something.
            found = cache.scored_places[:known]
            before = cache.place
            for node in range(known, len(tree)):
                parent = tree.parent_list[node]
                found.append((before if parent == ROOT else found[parent]).push(tree.token_list[node]))
            cache.scored_places = found
            places += [*found[known:], *[found[-1]] * (width - count)]
        shape = (len(requests), width, -1)
        features = position_features(places).view(shape).to(self.device, self.dtype)
        needs = need_features(places, self.shape.inputs).view(shape).to(self.device, self.dtype)
        memory = self._memory(caches)
        remember = _Remember(caches, starts, counts, end)
        states = self.network.decode(
            tokens.to(self.device), features, needs, mask[:, None].to(self.device), memory.memory, memory.real, remember
        )
        self.forwards += 1
        self.layers_run += self.shape.layers
        self.kv_read += self.shape.layers * 2 * self.shape.hidden * (sum(starts) + sum(counts))
        answers = []
        for row, (request, cache) in enumerate(zip(requests, caches, strict=True)):
            cache.scored = len(request.tree)
            rows = list(range(request.known, len(request.tree))) if request.rows is None else list(request.rows)
            place = torch.tensor([node - request.known for node in rows], dtype=torch.int64)
            logits = self.network.head(states[row, place.to(self.device)])
            answers.append(Scores(logits.float() if self.dtype == torch.bfloat16 else logits, rows))
        return answers

    def _memory(self, caches: Sequence[CircuitCache]) -> _Batch:
        """The sources of a batch side by side; made again only when the batch changes."""
        sources = [cache.source for cache in caches]
        last = self._last
        if len(last.sources) == len(sources) and all(a is b for a, b in zip(last.sources, sources, strict=True)):
            return last
        lengths = [source.memory[0][0].shape[1] if source.memory else 0 for source in sources]
        longest = max(*lengths, 1)
        real = torch.zeros(len(sources), longest, dtype=torch.bool, device=self.device)
        size = (len(sources), self.shape.heads, longest, self.shape.hidden // self.shape.heads)
        memory = []
        for layer in range(self.shape.layers):
            pair = (
                torch.zeros(size, dtype=self.dtype, device=self.device),
                torch.zeros(size, dtype=self.dtype, device=self.device),
            )
            for row, source in enumerate(sources):
                for made, own in zip(pair, source.memory[layer] if source.memory else (), strict=False):
                    made[row, :, : lengths[row]] = own
            memory.append(pair)
        for row, length in enumerate(lengths):
            real[row, : max(length, 1)] = True
        self._last = _Batch(sources, memory, real)
        return self._last


class _Remember:
    """Writes the new keys and values of a pass behind the committed ones, and hands out all of them."""

    def __init__(self, caches: Sequence[CircuitCache], starts: Sequence[int], counts: Sequence[int], end: int) -> None:
        self.caches, self.end = caches, end
        self.rows = torch.tensor([row for row, count in enumerate(counts) for _ in range(count)])
        self.nodes = torch.tensor([node for count in counts for node in range(count)])
        self.positions = torch.tensor(
            [start + node for start, count in zip(starts, counts, strict=True) for node in range(count)]
        )
        self.pools = {id(cache.pool): cache.pool for cache in caches}
        for pool in self.pools.values():
            pool.reserve(end)

    def __call__(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        made = []
        for number, new in enumerate((keys, values)):
            whole = new.new_zeros(new.shape[0], new.shape[1], self.end, new.shape[3])
            for pool in self.pools.values():
                mine = torch.tensor([row for row, cache in enumerate(self.caches) if cache.pool is pool])
                slots = torch.tensor([self.caches[row].slot for row in mine.tolist()])
                held = pool.buffers(layer, keys, values)[number]
                slot_of = torch.zeros(len(self.caches), dtype=torch.int64)
                slot_of[mine] = slots
                here = torch.isin(self.rows, mine) if len(self.pools) > 1 else slice(None)
                rows, nodes, positions = self.rows[here], self.nodes[here], self.positions[here]
                held[slot_of[rows], :, positions] = new[rows, :, nodes]
                whole[mine] = held[slots, :, : self.end]
            made.append(whole)
        return made[0], made[1]


def padded(sources: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Trees as the encoder reads them: ``[B, S]`` tokens, ``[B, S, F]`` positions, and ``[B, S]`` which are real."""
    longest = max(len(source) for source in sources)
    tokens = torch.zeros(len(sources), longest, dtype=torch.int64)
    real = torch.zeros(len(sources), longest, dtype=torch.bool)
    places: list[Place] = []
    for row, source in enumerate(sources):
        tokens[row, : len(source)] = torch.tensor(list(source))
        real[row, : len(source)] = True
        place = Place(_ANYTHING)
        for token in source:
            places.append(place)
            place = place.push(token)
        places += [place] * (longest - len(source))
    return tokens, position_features(places).view(len(sources), longest, -1), real


# Only the ways are wanted of these places: no row matters, and there is no end.
_ANYTHING = Task(8, (0,) * 64, (0,) * 64)


def rounded(network: nn.Module) -> None:
    """Round weights in place to bf16, as :func:`save` writes them."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.to(torch.bfloat16))


def save(network: CircuitNetwork, folder: Path) -> None:
    """Write weights in bf16, and the sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in network.state_dict().items()}
    write_whole(folder / "model.safetensors", safetensors.torch.save(kept, {"format": "pt"}))
    config = {"unspool_architecture": NAME, **asdict(network.shape)}
    write_whole(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def load(folder: Path, name: str, dtype: torch.dtype, device: torch.device) -> CircuitModel:
    """Read what :func:`save` wrote.

    Raises:
        WeightsError: if a file is damaged or lacks something.
        InvalidInput: for half precision, in which the network is not run.
    """
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise InvalidInput(f"{name} runs in float32, float64 or bfloat16, not in {str(dtype).removeprefix('torch.')}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = Shape(**{key: config[key] for key in Shape.__dataclass_fields__})
        network = CircuitNetwork(shape)
        network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsError(f"{name} cannot be loaded from {folder}: {told}") from error
    return CircuitModel(network.to(device, dtype), name)
