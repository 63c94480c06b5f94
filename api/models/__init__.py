"""The domain: models, jobs and how checkpoints become models. Torch lives here; the web and asyncio do not."""
