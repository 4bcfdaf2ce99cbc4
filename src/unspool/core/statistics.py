"""Numbers of a run, folded from its events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unspool.core.events import Event, Finished, Prefilled, Scored, Started, Stepped


@dataclass
class Statistics:
    """Counts and times of one request, or of a batch when every event is fed in.

    A round of the loop is counted once, whatever the number of requests in it.

    Attributes:
        prompt_tokens, tokens: read and generated.
        steps: rounds of the loop that this request took part in.
        forwards: target passes of those rounds.
        layers: layers of the target that those passes ran through (0 if the model cannot tell).
        kv_read: elements of keys and values that those passes attended to (0 if the model cannot tell).
        prefill_forwards: target passes that only read the prompt.
        draft_forwards: passes of other models.
        drafted, accepted: draft nodes proposed, draft nodes that stand.
        drafted_depth: sum over steps of the longest path proposed.
        drafted_by_depth: steps by the length of the longest path proposed; ``accepted_by_depth`` by that accepted.
        forced: tokens that a constraint left no choice about, committed without asking the model.
        incomplete: texts that ended before their constraint called them complete.
        seconds: from the start to the end; ``first_token_seconds`` to the first committed token.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0
    forwards: int = 0
    layers: int = 0
    kv_read: int = 0
    prefill_forwards: int = 0
    draft_forwards: int = 0
    drafted: int = 0
    drafted_depth: int = 0
    accepted: int = 0
    forced: int = 0
    incomplete: int = 0
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    score_seconds: float = 0.0
    verify_seconds: float = 0.0
    first_token_seconds: float | None = None
    peak_cache_bytes: int = 0
    finish_reasons: dict[str, int] = field(default_factory=dict)
    drafted_by_depth: dict[int, int] = field(default_factory=dict)
    accepted_by_depth: dict[int, int] = field(default_factory=dict)
    _committed: int = field(default=0, repr=False)

    def update(self, event: Event, elapsed: float, index: int | None = None) -> None:
        """Fold in one event.

        Args:
            event: of the loop.
            elapsed: seconds since the start.
            index: count only this request; ``None`` for the whole batch.
        """
        if isinstance(event, Prefilled):
            self.prefill_forwards += event.forwards
            self.prefill_seconds += event.seconds
        elif isinstance(event, Scored):
            if index is None or any(request == index for request, _ in event.branches):
                self.steps += 1
                self.forwards += event.forwards
                self.layers += event.layers
                self.kv_read += event.kv_read
                self.draft_forwards += event.draft_forwards
                self.draft_seconds += event.draft_seconds
                self.score_seconds += event.score_seconds
                self.verify_seconds += event.verify_seconds
                self.peak_cache_bytes = max(self.peak_cache_bytes, event.cache_bytes)
        elif index is not None and event.index != index:
            return
        elif isinstance(event, Started):
            self.prompt_tokens += event.prompt_tokens
        elif isinstance(event, Stepped):
            self.forced += event.forced
            if event.tokens and self.first_token_seconds is None:
                self.first_token_seconds = elapsed
            if event.forced and event.forced == len(event.tokens):
                return  # The model was not asked at all.
            self.drafted += len(event.draft)
            self.drafted_depth += event.draft.depth
            self.accepted += len(event.accepted)
            self._committed += len(event.tokens) - event.forced
            self.drafted_by_depth[event.draft.depth] = self.drafted_by_depth.get(event.draft.depth, 0) + 1
            depth = len(event.accepted)
            self.accepted_by_depth[depth] = self.accepted_by_depth.get(depth, 0) + 1
        elif isinstance(event, Finished):
            self.tokens += len(event.tokens)
            self.incomplete += event.complete is False
            self.finish_reasons[event.reason] = self.finish_reasons.get(event.reason, 0) + 1
            self.seconds = elapsed

    @property
    def accepted_length(self) -> float:
        """Mean tokens that one verified step commits: the accepted draft tokens and the one chosen after them."""
        steps = sum(self.accepted_by_depth.values())
        return self._committed / steps if steps else 0.0

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted draft tokens over the length of the longest proposed paths; ``None`` if nothing was proposed."""
        return self.accepted / self.drafted_depth if self.drafted_depth else None

    @property
    def forwards_per_token(self) -> float:
        """Target passes for each token, the reading of the prompt aside."""
        return self.forwards / self.tokens if self.tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "steps": self.steps,
            "target_forwards": self.forwards,
            "target_layers": self.layers,
            "target_kv_read": self.kv_read,
            "prefill_forwards": self.prefill_forwards,
            "draft_forwards": self.draft_forwards,
            "forwards_per_token": self.forwards_per_token,
            "drafted_tokens": self.drafted,
            "accepted_tokens": self.accepted,
            "forced_tokens": self.forced,
            "incomplete": self.incomplete,
            "mean_accepted_length": self.accepted_length,
            "acceptance_rate": self.acceptance_rate,
            "drafted_by_depth": {str(depth): n for depth, n in sorted(self.drafted_by_depth.items())},
            "accepted_by_depth": {str(depth): n for depth, n in sorted(self.accepted_by_depth.items())},
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "first_token_seconds": self.first_token_seconds,
            "prefill_seconds": self.prefill_seconds,
            "draft_seconds": self.draft_seconds,
            "score_seconds": self.score_seconds,
            "verify_seconds": self.verify_seconds,
            "peak_cache_bytes": self.peak_cache_bytes,
            "finish_reasons": self.finish_reasons,
        }

    def line(self) -> str:
        """One line for people."""
        parts = [
            f"{self.tokens} tokens",
            f"{self.tokens_per_second:.1f} tok/s",
            f"{self.forwards_per_token:.2f} forwards/token",
            f"{self.accepted_length:.2f} tokens/step",
        ]
        if self.acceptance_rate is not None:
            parts.append(f"{100 * self.acceptance_rate:.0f}% accepted")
        if self.forced:
            parts.append(f"{self.forced} forced")
        if self.first_token_seconds is not None:
            parts.append(f"first token {self.first_token_seconds:.2f} s")
        parts.append(f"cache {self.peak_cache_bytes / 2**20:.1f} MB")
        return " · ".join(parts)
