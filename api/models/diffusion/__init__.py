"""What the family ``diffusion`` is made of: prompts, texts' embeddings, schedulers, pipelines."""

from __future__ import annotations

import logging

# While it is imported, diffusers asks for image processors by names at which transformers warns where torchvision is missing. Nothing here
# needs torchvision, and the warnings read like an incomplete installation.
logging.getLogger("transformers.utils.import_utils").addFilter(lambda record: "requires torchvision (not" not in record.getMessage())
