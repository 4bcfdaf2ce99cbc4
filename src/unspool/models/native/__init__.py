"""The native CPU runtime: decoder-only networks of the Llama family, with kernels made for a few tokens at a time.

* ``kernels.cpp``: the layer, the products and the packing; compiled once for the machine by :mod:`.library`.
* :mod:`.packing`: matrices as the kernels read them, from floats or straight from the blocks of a GGUF file.
* :mod:`.weights`: from a folder or a GGUF file to the parts of a network.
* :mod:`.network`: the pass itself, as structures for the kernels.
* :mod:`.families`: which architectures, and how each differs from Llama.
* :mod:`.native_lm`: all of it as a :class:`~unspool.core.model.LanguageModel`.
"""
