"""GGUF files: read once, dequantised, and written as a Hugging Face folder that any loader understands.

A GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is one file with the shape of the network, the
vocabulary and the weights, most of them in blocks of a few bits. :func:`convert` turns it into a folder with
``config.json``, ``generation_config.json``, ``model.safetensors`` and the tokenizer's files, so that the model loads in
a second or two from then on, with the ordinary ``from_pretrained``.

What is used and what is not:

* ``gguf.quants.dequantize`` unpacks the blocks: it is the reference of the format in Python.
* The header is read here. ``gguf.GGUFReader`` makes several numpy arrays of every string (20 seconds for a vocabulary
  of 262,144 tokens, against one second here) and trusts every length it reads, so that a truncated file shows up as
  a numpy error about shapes.
* transformers' own ``from_pretrained(gguf_file=...)`` is not used. It parses and dequantises the file anew on each
  load, needs another package, leaves out tensors it does not know without a word (the rope factors of Llama 3.1 are
  one), and cuts text by GPT-2's rules where a file names rules that it does not know (SmolLM2's, where digits stand
  alone, are such).

Every architecture in :data:`ARCHITECTURES` names all of its tensors: a tensor that is missing, left over or of
another shape than the network wants is an error, never a guess.
"""

from unspool.models.gguf.architectures import ARCHITECTURES
from unspool.models.gguf.conversion import (
    BLOCKS,
    CONVERTER_VERSION,
    DTYPES,
    check_dtype,
    convert,
    converted_bytes,
    is_converted,
)
from unspool.models.gguf.header import GGUFFile, TensorInfo, check_magic, read

__all__ = [
    "ARCHITECTURES",
    "BLOCKS",
    "CONVERTER_VERSION",
    "DTYPES",
    "GGUFFile",
    "TensorInfo",
    "check_dtype",
    "check_magic",
    "convert",
    "converted_bytes",
    "is_converted",
    "read",
]
