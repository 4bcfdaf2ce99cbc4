"""One training loop, objectives, corpora, and the recipes of the small models that experiments need."""
