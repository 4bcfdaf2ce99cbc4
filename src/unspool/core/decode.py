"""The in-order loop: propose, score, commit. Every autoregressive decoder of the project runs through it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_

import torch

from unspool.core.branch import Branch
from unspool.core.constrained import grown, pruned
from unspool.core.errors import InvalidInput
from unspool.core.events import Event, Prefilled, Probe, Scored, Started, Stepped
from unspool.core.log_probs import log_prob, note_pending, unnoted
from unspool.core.model import Capability, LanguageModel
from unspool.core.scores import LOGITS, Request, Scores
from unspool.core.sockets import (
    Budget,
    CachePolicy,
    Constraint,
    Controller,
    Distribution,
    Draft,
    Drafter,
    Ended,
    LookAhead,
    Move,
    Node,
    Observation,
    Part,
    Reader,
    Sampler,
    Search,
    Verifier,
    Walk,
    match_target,
)
from unspool.core.texts import Stop, Texts
from unspool.core.tree import ROOT, TokenTree


class Greedy(Sampler):
    """The most probable token; the first of equals."""

    deterministic = True
    greedy = True

    def distribution(self, node: Node) -> Distribution:
        return Distribution.best(node.logits)


@torch.no_grad()
def decode(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    drafter: Drafter | None = None,
    controller: Controller | None = None,
    verifier: Verifier | None = None,
    sampler: Sampler | None = None,
    constraint: Constraint | None = None,
    cache_policy: CachePolicy | None = None,
    search: Search | None = None,
    reader: Reader | None = None,
    stop: Stop | None = None,
    seed: int = 0,
    chunk: int = 256,
    probe: bool = False,
) -> Iterator[Event]:
    """Decode a batch of prompts and tell what happens.

    Every argument after the prompts is a socket or a limit; :func:`unspool.core.compose.compose` fills them from slugs
    and checks that they fit together, which this function takes for granted.

    Args:
        model: the target.
        prompts: token ids, one list a request.
        drafter: guesses; without one the loop is plain decoding.
        stop: when to end; the default is 256 tokens or the model's own stop tokens.
        seed: equal seeds give equal runs on one machine.
        chunk: at most so many prompt tokens enter in one pass.
        probe: put the model's probabilities into the events.

    Raises:
        InvalidInput: for an empty prompt, one that leaves no room in the context, or a token outside the vocabulary.
        DeadEnd: if a constraint leaves no token.
    """
    if chunk < 1:
        raise InvalidInput(f"chunk is {chunk}; it must be at least 1")
    stop = stop or Stop()
    sampler = sampler or Greedy()
    filled = (drafter, controller, verifier, sampler, constraint, cache_policy, search, reader)
    # One part may fill two sockets.
    parts: list[Part] = list(dict.fromkeys(part for part in filled if part is not None))
    # Branches of such a search are compared token by token: what is forced is committed one token a step.
    jumps = search is None or not search.lockstep
    loop = _Loop(model, parts, sampler, verifier, constraint, stop, probe, jumps)
    began = time.perf_counter()
    _check(model, prompts)

    begun = model.start(prompts) if controller is None else controller.start(model, prompts)
    if controller is not None and controller.chunk is not None:
        chunk = min(chunk, controller.chunk)
    branches = [
        Branch(index, 0, tokens, cache, seed, model.device, [] if tokens == list(prompt) else list(prompt))
        for index, (prompt, (cache, tokens)) in enumerate(zip(prompts, begun, strict=True))
    ]
    everything = list(branches)
    try:
        for branch, prompt in zip(branches, prompts, strict=True):
            yield Started(branch.index, len(prompt))
            loop.texts.begin(branch)
            text, forced = loop.jump(branch, streaming=search is None)
            if forced:
                yield Stepped(branch.index, branch.number, 0, forced, text, TokenTree.empty(), (), None, len(forced))
        # A search forks after the prompt was read, so nothing of it may be left for the first step.
        until = None if stop.deadline is None else began + stop.deadline
        reading = [branch for branch in branches if branch.finished is None]
        yield from loop.prefill(reading, chunk, leave=1 if search else chunk, until=until)

        groups: dict[int, list[Branch]] = {}
        for branch in branches:
            group = [branch]
            if search is not None:
                search.begin(branch.index, branch.aside(0x5EA2C4, model.device))
                group += [branch.fork(number) for number in range(1, search.width)]
                everything += group[1:]
                for twin in group[1:]:
                    loop.texts.begin(twin)
            groups[branch.index] = group
            loop.numbers[branch.index] = len(group)

        step = 0
        while groups:
            live = [branch for group in groups.values() for branch in group if branch.finished is None]
            if live:
                yield from loop.round(live, drafter, controller, cache_policy, step, streaming=search is None)
                step += 1
            late = until is not None and time.perf_counter() >= until
            for index, group in list(groups.items()):
                if late:
                    for branch in group:
                        branch.finished = branch.finished or "deadline"
                moves = search.advance(group) if search is not None and not late else None
                if moves is not None:
                    groups[index] = loop.move(group, moves, everything)
                elif all(branch.finished is not None for branch in group):
                    chosen = search.select(group) if search is not None else 0
                    yield from loop.catch_up(group)
                    said = reader.read([loop.texts.output(branch) for branch in group], chosen) if reader else None
                    if said is not None and said.choice is not None:
                        chosen = said.choice
                    yield loop.texts.outcome(group[chosen], said, streaming=search is None)
                    for branch in group:
                        loop.release(branch)
                    del groups[index]
    finally:
        # The consumer may leave early; what the branches hold must not outlive the loop.
        for branch in everything:
            loop.release(branch)


def _check(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
    for index, prompt in enumerate(prompts):
        which = f"prompt {index}" if len(prompts) > 1 else "the prompt"
        if not len(prompt):
            raise InvalidInput(f"{which} is empty; give at least one token")
        # What an encoder reads takes no place from the answer; the model checks it.
        reads_apart = Capability.ENCODER in model.capabilities
        if model.context_length is not None and len(prompt) >= model.context_length and not reads_apart:
            raise InvalidInput(
                f"{which} has {len(prompt)} tokens; {model.name} has a context of {model.context_length}, "
                "and at least one position is needed for the answer: shorten the prompt"
            )
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= model.vocab_size:
            wrong = low if low < 0 else high
            raise InvalidInput(f"{which} holds token {wrong}; {model.name} has tokens 0 to {model.vocab_size - 1}")


class _Loop:
    """One run's fixed surroundings, and the steps of the loop over them."""

    def __init__(
        self,
        model: LanguageModel,
        parts: list[Part],
        sampler: Sampler,
        verifier: Verifier | None,
        constraint: Constraint | None,
        stop: Stop,
        probe: bool,
        jumps: bool,
    ) -> None:
        self.model = model
        self.parts = parts
        self.sampler = sampler
        self.verify = verifier.verify if verifier is not None else match_target
        self.constraint = constraint
        self.probe = probe
        self.jumps = jumps
        self.want = reduce(or_, (part.want for part in parts), LOGITS)
        self.reads_prompt = any(part.observes_prompt for part in parts)
        self.log_probs = any(part.reads_log_probs for part in parts)
        self.texts = Texts(model, stop, constraint, self.log_probs)
        self.released: set[int] = set()
        self.numbers: dict[int, int] = {}

    # -- the prompt -----------------------------------------------------------------------------------------------

    def prefill(self, branches: list[Branch], size: int, leave: int, until: float | None) -> Iterator[Event]:
        """Read the prompts in pieces of at most ``size``; at most ``leave`` tokens of each enter with the first step.

        The branches end with the deadline if the clock passes ``until`` before all is read.
        """
        while True:
            long = [branch for branch in branches if len(branch.pending) > leave]
            if not long:
                return
            began, forwards = time.perf_counter(), self.model.forwards
            if until is not None and began >= until:
                for branch in branches:
                    branch.finished = "deadline"
                return
            trees = [TokenTree.chain(branch.pending[: min(size, len(branch.pending) - 1)]) for branch in long]
            requests = [
                Request(branch.cache, tree, rows=self.rows(branch, tree))
                for branch, tree in zip(long, trees, strict=True)
            ]
            for branch, tree, scores in zip(long, trees, self.model.score(requests, self.want), strict=True):
                note_pending(branch, len(tree), scores)
                seen = Observation(branch, tree, len(tree), scores, Draft.empty(), [], [])
                for part in self.parts:
                    part.observe(seen)
                branch.cache.commit(range(len(tree)))
            yield Prefilled(time.perf_counter() - began, self.model.forwards - forwards)

    def catch_up(self, group: list[Branch]) -> Iterator[Event]:
        """One more pass where texts end with tokens whose log-probabilities are wanted and not known: forced ones."""
        late = [branch for branch in group if unnoted(branch)]
        if not late:
            return
        began, forwards = time.perf_counter(), self.model.forwards
        trees = [TokenTree.chain(branch.pending) for branch in late]
        requests = [
            Request(branch.cache, tree, rows=self.rows(branch, tree)) for branch, tree in zip(late, trees, strict=True)
        ]
        for branch, tree, scores in zip(late, trees, self.model.score(requests), strict=True):
            note_pending(branch, len(tree), scores)
        yield Prefilled(time.perf_counter() - began, self.model.forwards - forwards)

    # -- one round ------------------------------------------------------------------------------------------------

    def round(
        self,
        live: list[Branch],
        drafter: Drafter | None,
        controller: Controller | None,
        cache_policy: CachePolicy | None,
        step: int,
        *,
        streaming: bool,
    ) -> Iterator[Event]:
        clock = time.perf_counter
        others = {
            id(model): model for part in self.parts for model in part.other_models if model is not self.model
        }.values()
        t0, target_before, layers_before = clock(), self.model.forwards, self.model.layers_run
        read_before = self.model.kv_read
        others_before = sum(other.forwards for other in others)

        drafts = self.propose(live, drafter, controller)
        others_forwards = sum(other.forwards for other in others) - others_before

        t1 = clock()
        offsets = [len(branch.pending) for branch in live]
        trees = [draft.tree.after(branch.pending) for branch, draft in zip(live, drafts, strict=True)]
        requests = [
            Request(branch.cache, tree, rows=self.rows(branch, tree)) for branch, tree in zip(live, trees, strict=True)
        ]
        if self.constraint is not None:
            for branch, draft in zip(live, drafts, strict=True):
                self.constraint.prepare(branch, draft)
        for request, draft in zip(requests, drafts, strict=True):
            if draft.entered is not None:
                request.inputs = torch.cat([draft.entered.pending, draft.entered.hidden])
        all_scores = self.score(
            requests, [self.layers(branch, draft, controller) for branch, draft in zip(live, drafts, strict=True)]
        )

        t2 = clock()
        stepped: list[Stepped] = []
        for branch, draft, tree, offset, scores in zip(live, drafts, trees, offsets, all_scores, strict=True):
            stepped.append(self.settle(branch, draft, tree, offset, scores, step, streaming))
            if cache_policy is not None and branch.finished is None:
                cache_policy.shrink(branch)
        yield Scored(
            step,
            t1 - t0,
            t2 - t1,
            clock() - t2,
            # A drafter that runs the target's own layers is counted with the target.
            self.model.forwards - target_before,
            others_forwards,
            sum(branch.cache.nbytes for branch in live),
            tuple((branch.index, branch.number) for branch in live),
            self.model.layers_run - layers_before,
            self.model.kv_read - read_before,
        )
        yield from stepped

    def rows(self, branch: Branch, tree: TokenTree) -> list[int] | None:
        """The nodes whose logits are wanted: of the pending tokens the last one's decide what follows, and those before
        a token without a log-probability tell it."""
        if self.reads_prompt:
            return None
        return list(range(max(len(branch.pending) - 1 - unnoted(branch), 0), len(tree)))

    def layers(self, branch: Branch, draft: Draft, controller: Controller | None) -> tuple[int, ...] | None:
        """Which layers finish the pass over this branch's tree; ``None`` for all."""
        if draft.entered is not None:
            return tuple(range(draft.entered.layer, self.model.num_layers))
        chosen = controller.layers(branch) if controller is not None else None
        return None if chosen is None else tuple(chosen)

    def score(self, requests: list[Request], layers: list[tuple[int, ...] | None]) -> list[Scores]:
        """One pass for all requests that run the same layers."""
        groups: dict[tuple[int, ...] | None, list[int]] = {}
        for place, kept in enumerate(layers):
            groups.setdefault(kept, []).append(place)
        answers: dict[int, Scores] = {}
        for kept, places in groups.items():
            scores = self.model.score([requests[place] for place in places], self.want, kept)
            answers.update(zip(places, scores, strict=True))
        return [answers[place] for place in range(len(requests))]

    def propose(self, live: list[Branch], drafter: Drafter | None, controller: Controller | None) -> list[Draft]:
        """Drafts within what remains of the request and of the context; what a sampler asked to see goes first."""
        drafts = [Draft(branch.ahead) if branch.ahead is not None else Draft.empty() for branch in live]
        if drafter is None:
            return drafts
        free = [i for i, branch in enumerate(live) if branch.ahead is None]
        budgets = []
        for i in free:
            room = Budget(depth=self.room(live[i]))
            budgets.append(room & controller.budget(live[i]) if controller is not None else room)
        asking = [
            (i, budget) for i, budget in zip(free, budgets, strict=True) if budget.depth != 0 and budget.nodes != 0
        ]
        proposed = drafter.propose([live[i] for i, _ in asking], [budget for _, budget in asking]) if asking else []
        proposed = [
            grown(self.constraint, live[i], pruned(self.constraint, live[i], draft).limited(budget), budget)
            for draft, (i, budget) in zip(proposed, asking, strict=True)
        ]
        if controller is not None:
            proposed = controller.allocate([live[i] for i, _ in asking], proposed)
        for (i, _), draft in zip(asking, proposed, strict=True):
            drafts[i] = draft
        return drafts

    def room(self, branch: Branch) -> int:
        """How deep a draft can be of use: the token after it must still fit."""
        return max(branch.limit - (len(branch.tokens) - branch.prompt_length) - 1, 0)

    def settle(
        self, branch: Branch, draft: Draft, tree: TokenTree, offset: int, scores: Scores, step: int, streaming: bool
    ) -> Stepped:
        """Verify one branch's draft, commit what stands, and say so."""
        walk = Walk(branch, draft, scores, offset, self.sampler, self.constraint)
        ahead: TokenTree | None = None
        ended = False
        try:
            verdict = self.verify(walk)
            path, chosen = verdict.path, [verdict.token]
        except LookAhead as ask:
            path, chosen = draft.tree.path(ask.node), []
            ahead = TokenTree([*ask.candidates], [ROOT] * len(ask.candidates))
        except Ended as end:
            path, chosen, ended = draft.tree.path(end.node), [], True
        tokens = [draft.tree.token_list[node] for node in path] + chosen

        text, tokens = self.texts.until_stop(branch, tokens, streaming)
        # A stop inside the accepted run takes the rest of the run with it.
        path = path[: len(tokens)]
        if len(tokens) < len(path) + len(chosen):
            chosen, ahead = tokens[len(path) :], None
        if ended and branch.finished is None:
            branch.finished = "complete"
        seen = Observation(branch, tree, offset, scores, draft, path, tokens)
        for part in self.parts:
            part.observe(seen)
        if self.log_probs:
            note_pending(branch, offset, scores)
            branch.log_probs += [
                log_prob(walk.logits(node), token) for node, token in zip([ROOT, *path], tokens, strict=False)
            ]
        last = path[-1] if path else ROOT
        branch.carry = None if chosen else walk.logits(last).clone()
        probed = self.probabilities(walk, path, tokens) if self.probe else None
        branch.log_z += [
            dist.log_z if (dist := walk.seen(node)) is not None else None for node in [ROOT, *path][: len(tokens)]
        ]
        branch.cache.commit(seen.kept)
        branch.tokens.extend(tokens)
        branch.ahead = ahead if branch.finished is None else None
        more, forced = self.jump(branch, streaming) if chosen else ("", ())
        return Stepped(
            branch.index,
            branch.number,
            step,
            (*tokens, *forced),
            text + more,
            draft.tree,
            tuple(path),
            probed,
            len(forced),
        )

    def jump(self, branch: Branch, streaming: bool) -> tuple[str, tuple[int, ...]]:
        """Commit what a constraint leaves no choice about, up to the first reason to stop; the tokens are pending, as
        chosen ones are. The text that they release, and the tokens."""
        if self.constraint is None or not self.jumps or branch.finished is not None:
            return "", ()
        text, tokens = self.texts.until_stop(branch, self.constraint.forced(branch, branch.tokens), streaming)
        branch.tokens.extend(tokens)
        branch.log_z += [None] * len(tokens)
        if self.log_probs:
            branch.log_probs += [None] * len(tokens)
        return text, tuple(tokens)

    def probabilities(self, walk: Walk, path: list[int], tokens: list[int]) -> Probe:
        """The model's own probability of every draft node and every committed token."""
        logs = {
            node: torch.log_softmax(walk.logits(node).float(), dim=-1) for node in {ROOT, *walk.tree.parent_list, *path}
        }

        def prob(node: int, token: int) -> float:
            return float(logs[node][token].exp())

        draft = tuple(prob(p, t) for p, t in zip(walk.tree.parent_list, walk.tree.token_list, strict=True))
        return Probe(draft, tuple(prob(n, t) for n, t in zip([ROOT, *path], tokens, strict=False)))

    # -- branches -------------------------------------------------------------------------------------------------

    def move(self, group: list[Branch], moves: list[Move], everything: list[Branch]) -> list[Branch]:
        """The next round's branches; a source that is used again is forked, one that is not used is released."""
        # A number is never given twice: it decides a branch's random draws.
        index = group[0].index
        uses = [move.source for move in moves]
        following: list[Branch] = []
        for place, move in enumerate(moves):
            source, keep = move.source, move.keep
            # The last use takes the branch itself: no copy of a cache without need.
            branch = group[source]
            if source in uses[place + 1 :]:
                branch = branch.fork(self.numbers[index])
                everything.append(branch)
                self.numbers[index] += 1
            following.append(branch)
            if keep is not None:
                branch.rewind(keep)
            branch.tokens.extend(move.then)
            branch.log_z += [None] * len(move.then)
            if self.log_probs:
                branch.log_probs += [None] * len(move.then)
            if branch is not group[source] or keep is not None:
                self.texts.begin(branch)
            if move.then and branch.finished is None:
                if move.then[-1] in branch.stops:
                    branch.finished = "stop-token"
                elif len(branch.generated) >= branch.limit:
                    branch.finished = "length"
        for source, branch in enumerate(group):
            if source not in uses:
                self.release(branch)
        return following

    def release(self, branch: Branch) -> None:
        if id(branch) in self.released:
            return
        self.released.add(id(branch))
        for part in self.parts:
            part.release(branch)
        branch.cache.release()
