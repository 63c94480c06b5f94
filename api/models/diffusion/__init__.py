"""What the family ``diffusion`` is made of: prompts, texts' embeddings, schedulers, pipelines."""
