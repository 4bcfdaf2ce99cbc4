"""What scores tokens: models of the transformers library, and where their weights come from."""
