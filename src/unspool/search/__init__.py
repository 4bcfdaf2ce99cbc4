"""Searches: which texts are worth going on with."""
