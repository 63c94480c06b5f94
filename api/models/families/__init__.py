"""One module per model family, found by name: ``load(checkpoint, conf, place) -> Model``. Its TOML keys stand in ``api.conf``."""
