"""Cache policies: what is remembered of a text."""
