"""Verifiers: which guesses stand? One file a rule."""
