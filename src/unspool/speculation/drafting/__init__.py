"""Drafters: what do we guess? One file a method."""
