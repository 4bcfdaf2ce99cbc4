"""Samplers: how a distribution becomes a token.

``warp`` holds the pure functions on logits, ``standard`` the plain sampler made of them; every other file is one
method, but for ``distortion``, the arithmetic of local normalisation that one of them is built on.
"""
