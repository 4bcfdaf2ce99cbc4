"""The architecture: trees, canvases, sockets, cards, the registry, and the two loops. Imports nothing of the rooms."""
