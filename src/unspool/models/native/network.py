"""The network: its weights packed, its layers as the kernels want them, and the pass over some tokens.

A pass is: look up embeddings, run layers, norm, multiply the rows that are wanted by the head. Tokens of all sequences
lie one behind the other, ``[T, d]``; no row is padded. Which rows of the cache a token sees is told to the kernels as a
number (committed rows) and a list (its ancestors in the tree).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from unspool.core.errors import WeightsError
from unspool.models.native.families import Shape
from unspool.models.native.library import kernels
from unspool.models.native.packing import Kind, Matrix, MatrixStruct, Packed, Rows
from unspool.models.native.weights import Weights

_PROJECTIONS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_FIRST_POSITIONS = 512
_ROWS = 256
# `MOST_TOGETHER` of ``kernels.cpp``.
_TOGETHER = 8


class LayerStruct(ctypes.Structure):
    """``Layer`` of ``kernels.cpp``."""

    _fields_ = (
        *((name, MatrixStruct) for name in _PROJECTIONS),
        *(
            (name, ctypes.c_void_p)
            for name in ("norm_attention", "norm_after_attention", "norm_mlp", "norm_after_mlp", "norm_q", "norm_k")
        ),
        ("cosine", ctypes.c_void_p),
        ("sine", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("window", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("index", ctypes.c_int32),
    )


class SizesStruct(ctypes.Structure):
    """``Sizes`` of ``kernels.cpp``."""

    _fields_ = tuple((n, ctypes.c_int64) for n in ("hidden", "mlp", "heads", "kv_heads", "head_dim", "half_cache"))


class SequenceStruct(ctypes.Structure):
    """``Sequence`` of ``kernels.cpp``."""

    _fields_ = (
        ("table", ctypes.c_void_p),
        ("slot", ctypes.c_int64),
        ("room", ctypes.c_int64),
        ("gap", ctypes.c_int64),
        ("lender", ctypes.c_int64),
        ("shared", ctypes.c_int64),
    )


class TokensStruct(ctypes.Structure):
    """``Tokens`` of ``kernels.cpp``."""

    _fields_ = (
        ("count", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "sequence",
                "position",
                "row",
                "until",
                "begin",
                "further",
                "sequences",
                "probabilities",
                "queries",
            )
        ),
        ("most_rows", ctypes.c_int64),
    )


_BUFFERS = ("x", "normed", "q", "k", "v", "mixed", "gate", "up", "after", "integers", "scale", "total", "scores")


class SpaceStruct(ctypes.Structure):
    """``Space`` of ``kernels.cpp``."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in _BUFFERS)


class Rotation:
    """Tables of cosines and sines for a kind of layer, ``[positions, head_dim / 2]``, made as far as needed."""

    def __init__(self, frequencies: Sequence[float], factor: float) -> None:
        self._frequencies, self._factor = torch.tensor(frequencies, dtype=torch.float32), factor
        self.cosine = self.sine = torch.empty(0, 0)

    def reach(self, positions: int) -> bool:
        """Make the tables long enough; whether they lie elsewhere now."""
        if positions <= self.cosine.shape[0]:
            return False
        long = max(_FIRST_POSITIONS, 2 * positions)
        angles = torch.arange(long, dtype=torch.float32)[:, None] * self._frequencies
        self.cosine, self.sine = angles.cos() * self._factor, angles.sin() * self._factor
        return True


class Network:
    """A network of the family, ready for the kernels.

    Args:
        shape: its numbers.
        weights: its parameters.
        half_cache: whether keys and values are kept in half precision; by default if any weight of a layer is not in
            single precision.

    Raises:
        WeightsError: if parameters are missing or of another shape.
    """

    def __init__(self, shape: Shape, weights: Weights, *, half_cache: bool | None = None) -> None:
        self.shape = shape
        self._vectors: list[Tensor] = []
        self._rotations = {kind: Rotation(*of) for kind, of in shape.rotations.items()}
        self.embedding = Matrix(self._checked(weights.matrix("model.embed_tokens.weight"), None, shape.hidden))
        self.head = (
            self.embedding
            if shape.tied
            else Matrix(self._checked(weights.matrix("lm_head.weight"), None, shape.hidden))
        )
        self.norm = self._vector(weights, "model.norm.weight", offset=shape.family.norm_offset)
        self.matrices: list[dict[str, Matrix]] = []
        self.layers = [self._layer(weights, index) for index in range(shape.layers)]
        exact = all(matrix.kind is Kind.F32 for layer in self.matrices for matrix in layer.values())
        self.half_cache = not exact if half_cache is None else half_cache
        self._pointers = (ctypes.c_void_p * shape.layers)(*(ctypes.addressof(layer) for layer in self.layers))
        sizes = (shape.hidden, shape.mlp, shape.heads, shape.kv_heads, shape.head_dim)
        self._sizes = SizesStruct(*sizes, int(self.half_cache))
        self._space = SpaceStruct()
        self._buffers: dict[str, Tensor] = {}
        self._room = (0, 0, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrices."""
        all_of = [self.embedding, *([] if self.head is self.embedding else [self.head])]
        return sum(m.nbytes for m in all_of) + sum(m.nbytes for layer in self.matrices for m in layer.values())

    # -- weights -----------------------------------------------------------------------------------------------------

    def _layer(self, weights: Weights, index: int) -> LayerStruct:
        shape, prefix = self.shape, f"model.layers.{index}."
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        sizes = {
            "q": (queries, shape.hidden),
            "k": (keys, shape.hidden),
            "v": (keys, shape.hidden),
            "o": (shape.hidden, queries),
            "gate": (shape.mlp, shape.hidden),
            "up": (shape.mlp, shape.hidden),
            "down": (shape.hidden, shape.mlp),
        }
        layer = LayerStruct(
            eps=shape.eps,
            scale=shape.scale,
            softcap=shape.softcap,
            window=shape.windows[index],
            activation=shape.activation,
            index=index,
        )
        matrices = {}
        for field, name in _PROJECTIONS.items():
            rows = self._checked(weights.matrix(f"{prefix}{name}.weight"), *sizes[field])
            bias = weights.vector(f"{prefix}{name}.bias") if f"{prefix}{name}.bias" in weights else None
            matrices[field] = Matrix(rows, bias)
            setattr(layer, field, matrices[field].struct)
        self.matrices.append(matrices)
        offset = shape.family.norm_offset
        for name, field in shape.family.norms().items():
            setattr(layer, field, self._vector(weights, f"{prefix}{name}.weight", offset=offset).data_ptr())
        for name, field in {"q_norm": "norm_q", "k_norm": "norm_k"}.items():
            if f"{prefix}self_attn.{name}.weight" in weights:
                vector = self._vector(weights, f"{prefix}self_attn.{name}.weight", offset=offset)
                setattr(layer, field, vector.data_ptr())
        return layer

    @staticmethod
    def _checked(rows: Rows | Packed, n: int | None, k: int) -> Rows | Packed:
        if rows.k != k or n not in (None, rows.n):
            raise WeightsError(f"a matrix has the shape {[rows.n, rows.k]}; the configuration wants {[n or rows.n, k]}")
        return rows

    def _vector(self, weights: Weights, name: str, offset: float = 0.0) -> Tensor:
        vector = (weights.vector(name).to(torch.float32) + offset).contiguous()
        self._vectors.append(vector)
        return vector

    # -- the pass ----------------------------------------------------------------------------------------------------

    def prepare(self, tokens: int, rows: int, positions: int, threads: int) -> None:
        """Make room for passes over so many tokens that see so many rows, at positions below ``positions``."""
        for kind, rotation in self._rotations.items():
            if rotation.reach(positions):
                for layer, its in zip(self.layers, self.shape.kinds, strict=True):
                    if its == kind:
                        layer.cosine, layer.sine = rotation.cosine.data_ptr(), rotation.sine.data_ptr()
        held = self._room
        rows = -(-rows // _ROWS) * _ROWS
        if tokens <= held[0] and rows <= held[1] and threads <= held[2]:
            return
        self._room = tokens, rows, threads = max(tokens, held[0]), max(rows, held[1]), max(threads, held[2])
        for name, (dtype, count) in self.buffer_sizes(tokens, rows, threads).items():
            if name not in self._buffers or self._buffers[name].numel() < count:
                self._buffers[name] = torch.zeros(count, dtype=dtype)
                setattr(self._space, name, self._buffers[name].data_ptr())

    def drop_buffers(self) -> None:
        """Give the buffers back; the next pass makes its own."""
        self._buffers.clear()
        self._room = (0, 0, 0)

    def buffer_sizes(self, tokens: int, rows: int, threads: int) -> dict[str, tuple[torch.dtype, int]]:
        """Type and number of elements of every buffer."""
        s = self.shape
        queries, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim
        widest = max(s.hidden, queries, s.mlp)
        floats = {
            **dict.fromkeys(("x", "normed", "after"), s.hidden),
            **dict.fromkeys(("q", "mixed"), queries),
            **dict.fromkeys(("k", "v"), keys),
            **dict.fromkeys(("gate", "up"), s.mlp),
            **dict.fromkeys(("scale", "total"), -(-widest // 32)),
        }
        sizes = {name: (torch.float32, tokens * width) for name, width in floats.items()}
        sizes["integers"] = (torch.int8, tokens * widest)
        # In steps, as every token adds a row.
        scored = _TOGETHER * (s.heads // s.kv_heads)
        sizes["scores"] = (torch.float32, threads * scored * -(-rows // _ROWS) * _ROWS)
        return {name: sizes[name] for name in _BUFFERS}

    def states(self, tokens: int) -> Tensor:
        """``[tokens, d]`` the states between layers: a view that the next call overwrites."""
        return self._buffers["x"][: tokens * self.shape.hidden].view(tokens, self.shape.hidden)

    def embed(self, ids: Tensor, out: Tensor) -> None:
        """Embeddings of ``[T]`` int64 ids into ``[T, d]``."""
        kernels().embed(self.embedding.address, ids.data_ptr(), len(ids), self.shape.embedding_factor, out.data_ptr())

    def run(self, layers: Sequence[int] | range, tokens: TokensStruct, threads: int) -> None:
        """Run layers over :meth:`states`, and write their keys and values."""
        consecutive = layers == range(layers[0], layers[-1] + 1) if isinstance(layers, range) else False
        if consecutive:
            pointers, first = self._pointers, layers[0]
            address = ctypes.addressof(pointers) + first * ctypes.sizeof(ctypes.c_void_p)
        else:
            chosen = (ctypes.c_void_p * len(layers))(*(ctypes.addressof(self.layers[i]) for i in layers))
            address = ctypes.addressof(chosen)
        kernels().run_layers(
            address,
            len(layers),
            ctypes.addressof(self._sizes),
            ctypes.addressof(tokens),
            ctypes.addressof(self._space),
            threads,
        )

    def normed(self, states: Tensor) -> Tensor:
        """``[R, d]`` states behind the last norm."""
        out = torch.empty_like(states)
        kernels().normalise(states.data_ptr(), self.norm.data_ptr(), self.shape.eps, *states.shape, out.data_ptr())
        return out

    def logits(self, states: Tensor, *, norm: bool, threads: int) -> Tensor:
        """``[R, V]`` logits of ``[R, d]`` states, behind the last norm if ``norm``."""
        count, space = len(states), self._space
        out = torch.empty(count, self.head.n)
        kernels().product(
            self.head.address,
            states.data_ptr(),
            self.norm.data_ptr() if norm else None,
            self.shape.eps,
            count,
            space.normed,
            space.integers,
            space.scale,
            space.total,
            out.data_ptr(),
            threads,
        )
        cap = self.shape.final_softcap
        return out.div_(cap).tanh_().mul_(cap) if cap else out
