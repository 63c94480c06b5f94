"""StyleGAN FastAPI: one TOML file turned into a server for image generators."""

__version__ = "1.0.0"
