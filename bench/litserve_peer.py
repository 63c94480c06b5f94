"""LitServe serving the same network, for comparison: ``python -m bench.litserve_peer TOML MODEL PORT ENCODER``.

ENCODER "ours" uses this project's encoder too, so that only the server differs; "pillow" is what one would write.
LitServe reads the types of ``decode_request`` when the server starts, so annotations stay what they are in this file.
"""

import base64
import io
import sys
from typing import Any

import litserve
from PIL import Image

from api.conf import load_config
from api.engine.codec import Encoding, encode
from api.models.base import go_on
from api.models.device import prepare_device
from api.models.jobs import Generate, Output
from api.models.registry import load_model


class Peer(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, path: str, model_id: str, encoder: str, **options: Any) -> None:
        super().__init__(**options)
        self.path, self.model_id, self.encoder = path, model_id, encoder

    def setup(self, device: str) -> None:
        config = load_config(self.path)
        prepare_device("cpu", config.server.engine.threads)
        self.model = load_model(config, self.model_id)

    def decode_request(self, request: dict[str, Any]) -> Generate:
        job = self.model.prepare(Generate(model=self.model_id, seed=request["seed"]))
        assert isinstance(job, Generate)
        return job

    def batch(self, inputs: list[Generate]) -> list[Generate]:
        return inputs

    def predict(self, jobs: list[Generate]) -> Any:
        return self.model.run(jobs, go_on)

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Output) -> dict[str, Any]:
        if self.encoder == "ours":
            data = encode(output.image, Encoding("png"), {"Seed": output.seed})
        else:
            buffer = io.BytesIO()
            Image.fromarray(output.image).save(buffer, "PNG")
            data = buffer.getvalue()
        return {"seed": output.seed, "data": base64.b64encode(data).decode()}


if __name__ == "__main__":
    path, model_id, port, encoder = sys.argv[1:]
    api = Peer(path, model_id, encoder, max_batch_size=16, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu").run(port=int(port), host="127.0.0.1", num_api_servers=1, generate_client_file=False)
