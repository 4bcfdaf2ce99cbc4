"""A model whose output head knows only some tokens: their rows of the head are all that is multiplied.

The body, the cache and the input embeddings are those of the model that is wrapped, so any token may be read; the
others just cannot be said. In small models with large vocabularies the head is most of the work of a token.

Heads are affine up to a soft cap: ``logits = cap * tanh((s W h + b) / cap)``. The scale ``s`` and the offset ``b`` are
measured once by asking the model's own head about a few vectors, and the result is compared with what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.model import Capability, LanguageModel
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.models.wrapped import WrappedModel

_FINAL = -1


class TrimmedHead(WrappedModel):
    """A model with part of its head.

    Logits are as wide as those of the whole model, ``-inf`` for what was cut away. A model that gives no access to its
    head and hidden states computes all logits, and those of other tokens are then overwritten: what it says is the
    same, only nothing is saved (:attr:`saves` tells).

    Args:
        model: what is wrapped; left as it is.
        kept: tokens that can be said.

    Raises:
        InvalidInput: if no token is kept, or one is outside of the vocabulary.
        Incompatible: if the head is not affine up to a soft cap.
    """

    def __init__(self, model: LanguageModel, kept: Sequence[int]) -> None:
        super().__init__(model)
        from unspool.models.transformers_lm import TransformersModel

        self.saves = isinstance(model, TransformersModel) and Capability.HIDDEN_STATES in model.capabilities
        self._base = self._measured() if self.saves else None
        self.keep(kept)
        if self._base is not None:
            self._compare()

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.inner.name} with {len(self.kept)} of {self.vocab_size} tokens"

    @property
    def head_bytes(self) -> int:
        """Bytes of the head that are read for every token."""
        if self._base is None:
            return 0
        return self.rows.nbytes + (self.offset.nbytes if self.offset is not None else 0)

    def keep(self, kept: Sequence[int]) -> None:
        """Keep these tokens from now on.

        Raises:
            InvalidInput: see the class.
        """
        chosen = sorted(set(kept))
        if not chosen or chosen[0] < 0 or chosen[-1] >= self.vocab_size:
            what = f"{chosen[0]} to {chosen[-1]}" if chosen else "none"
            raise InvalidInput(
                f"tokens to keep of {self.inner.name}: {what}; at least one is needed, "
                f"within 0 to {self.vocab_size - 1}"
            )
        self.kept = torch.tensor(chosen, device=self.device)
        if self._base is not None:
            weight, offset = self._base
            self.rows = weight[self.kept]
            self.offset = offset[self.kept] if offset is not None else None

    # -- the head -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _measured(self) -> tuple[Tensor, Tensor | None]:
        """The head's matrix ``[V, d]`` and its offset ``[V]``; sets the cap and the scale."""
        from unspool.models.transformers_lm import TransformersModel

        assert isinstance(self.inner, TransformersModel)
        head = self.inner.model.get_output_embeddings()
        weight: Tensor = head.weight
        self._cap: float | None = getattr(self.inner.config, "final_logit_softcapping", None)
        rng = torch.Generator().manual_seed(0)
        # Small numbers, which no cap bends beyond what can be undone.
        probe = torch.randn(2, weight.shape[1], generator=rng).to(weight) / weight.shape[1]
        probe[0] = 0
        offset, said = self._uncapped(self.inner.head(probe))
        raw = probe[1:].to(weight) @ weight.T
        self._scale = float(((said - offset) * raw[0]).sum() / (raw[0] * raw[0]).sum().clamp_min(1e-30))
        if abs(self._scale - 1.0) < 1e-4:
            self._scale = 1.0
        return weight, offset if bool((offset != 0).any()) else None

    def _uncapped(self, logits: Tensor) -> Tensor:
        return logits if self._cap is None else torch.atanh(logits / self._cap) * self._cap

    def head(self, hidden: Tensor) -> Tensor:
        """``[N, d]`` final hidden states to ``[N, V]`` logits, ``-inf`` for what was cut away."""
        return self._spread(self._said(hidden)) if self.saves else self._only(self.inner.head(hidden))

    def exit_head(self, hidden: Tensor) -> Tensor:
        """The same of hidden states that leave an earlier layer."""
        return self._only(self.inner.exit_head(hidden))

    @torch.no_grad()
    def _said(self, hidden: Tensor) -> Tensor:
        """``[N, k]`` logits of the kept tokens."""
        hidden = hidden.to(self.rows)
        # The large operand goes first: with a few rows the product would else repack it each time.
        logits = (self.rows @ hidden.T).T if 1 < len(hidden) <= 64 else hidden @ self.rows.T
        logits = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        if self._scale != 1.0:
            logits = logits * self._scale
        if self.offset is not None:
            logits = logits + self.offset
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    def _spread(self, logits: Tensor) -> Tensor:
        whole = logits.new_full((len(logits), self.vocab_size), -torch.inf)
        whole[:, self.kept] = logits
        return whole

    def _only(self, logits: Tensor) -> Tensor:
        return self._spread(logits[:, self.kept])

    @torch.no_grad()
    def _compare(self) -> None:
        rng = torch.Generator().manual_seed(1)
        probe = torch.randn(2, self.rows.shape[1], generator=rng).to(self.rows)
        ours, theirs = self._said(probe), self.inner.head(probe)[:, self.kept]
        error, scale = float((ours - theirs).abs().max()), float(theirs.abs().max()) + 1e-6
        if not error <= (1e-3 if self.rows.dtype in (torch.float32, torch.float64) else 3e-2) * scale:
            raise Incompatible(
                f"the head of {self.inner.name} cannot be trimmed: it is not a matrix with a scale, an offset and a "
                f"soft cap (logits differ by {error:.3g} of {scale:.3g})"
            )

    # -- the body -------------------------------------------------------------------------------------------------

    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        if not self.saves:
            found = self.inner.score(requests, want, layers)
            return [Scores(self._only(s.logits), s.rows, s.hidden, s.attentions) for s in found]
        wider = want | Want(hidden=frozenset({_FINAL}))
        found = self.inner.score([replace(request, rows=[]) for request in requests], wider, layers)
        wanted = [
            list(range(request.known, len(request.tree))) if request.rows is None else request.rows
            for request in requests
        ]
        states = [
            scores.hidden[_FINAL][[row - request.known for row in rows]]
            for scores, request, rows in zip(found, requests, wanted, strict=True)
        ]
        # One product for the whole batch.
        logits = self._spread(self._said(torch.cat(states))).split([len(rows) for rows in wanted])
        answers = []
        for scores, rows, part in zip(found, wanted, logits, strict=True):
            hidden = scores.hidden if _FINAL in want.hidden else {k: v for k, v in scores.hidden.items() if k != _FINAL}
            answers.append(Scores(part, rows, hidden, scores.attentions))
        return answers
