"""What a run did and what a method is worth: traces, prompts, metrics, reproductions of claims."""
