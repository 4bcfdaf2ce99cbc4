"""Guess several tokens, score them in one pass: drafters, the rules that judge their guesses, and how much to guess."""
