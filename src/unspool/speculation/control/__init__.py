"""Controllers: how much do we guess now? One file a method."""
