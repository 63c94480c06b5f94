"""Traces from a real server to a real collector: every stage of a request, in one trace that the client may have begun."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

from tests.checkpoints import tiny_precure
from tests.serving import serve, write_config
from tests.test_gunicorn import until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """Takes OTLP over HTTP, gzipped or not, and keeps the spans with the role of the process that sent them."""

    def __init__(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self.spans: list[tuple[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    data = gzip.decompress(data)
                for sent in ExportTraceServiceRequest.FromString(data).resource_spans:
                    (role,) = [item.value.string_value for item in sent.resource.attributes if item.key == "process.role"]
                    collector.spans += [(role, span) for scope in sent.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def named(self, name: str, trace: str = TRACE) -> list[tuple[str, Any]]:
        return [(role, span) for role, span in self.spans if span.name == name and span.trace_id.hex() == trace]


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        thread.join()
        collector.server.server_close()


def write(folder: Path, url: str, most: int = 200, **trace: Any) -> Path:
    tiny_precure(folder / "plain.safetensors", levels=3)
    models = {"plain": {"file": "plain.safetensors", "relative": True}}
    return write_config(
        folder, models, {"limit": {"rate": {"enabled": True, "max_request": most}}, "engine": {"linger": 0.5}}, trace={"url": url, **trace}
    )


def test_a_request_is_one_trace_over_all_processes(tmp_path: Path) -> None:
    with collecting() as collector:
        with serve(write(tmp_path, collector.url, sample=0.0)) as server:
            sampled = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            assert server.client.post("/plain/generate?seed=1&count=2", headers=sampled).status_code == 200
            assert server.client.post("/plain/generate?seed=1").status_code == 200  # of which nothing is kept
            assert server.client.post("/plain/generate?seed=1", headers={"traceparent": "nonsense"}).status_code == 200
        until(lambda: len(collector.named("encode")) == 2)
        ((role, whole),) = collector.named("POST /{model_id}/generate")
        assert (role, whole.parent_span_id.hex()) == ("web", PARENT)
        told = {item.key: item.value for item in whole.attributes}
        assert told["http.response.status_code"].int_value == 200
        ((role, limits),) = collector.named("limits")
        assert (role, limits.parent_span_id) == ("web", whole.span_id)
        for name in ("queue", "model", "encode"):
            found = collector.named(name)
            assert [role for role, _ in found] == ["engine:cpu"] * 2
            assert {span.parent_span_id for _, span in found} == {whole.span_id}
            assert all(whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano for _, span in found)
        assert {span.trace_id.hex() for _, span in collector.spans} == {TRACE}


def test_who_is_sent_away_has_a_trace_of_the_limits(tmp_path: Path) -> None:
    with collecting() as collector:
        with serve(write(tmp_path, collector.url, most=1)) as server:
            sampled = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            assert [server.client.post("/plain/generate?seed=1", headers=sampled).status_code for _ in range(2)] == [200, 429]
        until(lambda: len(collector.named("limits")) == len(collector.named("POST /{model_id}/generate")) == 2)
        parents = {span.parent_span_id for _, span in collector.named("limits")}
        assert parents == {span.span_id for _, span in collector.named("POST /{model_id}/generate")}


def test_a_batch_is_linked_with_its_pictures(tmp_path: Path) -> None:
    with collecting() as collector:
        with serve(write(tmp_path, collector.url)) as server:
            assert server.client.post("/plain/generate?seed=1").status_code == 200
        until(lambda: any(span.name == "batch" for _, span in collector.spans))
        (batch,) = [span for _, span in collector.spans if span.name == "batch"]
        until(lambda: any(span.name == "POST /{model_id}/generate" for _, span in collector.spans))
        (whole,) = [span for _, span in collector.spans if span.name == "POST /{model_id}/generate"]
        assert [(link.trace_id, link.span_id) for link in batch.links] == [(whole.trace_id, whole.span_id)]
        assert batch.trace_id != whole.trace_id


def test_tasks_and_changes_are_traces_too(tmp_path: Path) -> None:
    with collecting() as collector:
        with serve(write(tmp_path, collector.url)) as server:
            params = {"params_type": "generate", "model": "plain", "seed": 1}
            task_id = server.client.post("/task", json=params).json()
            until(lambda: server.client.get(f"/task/{task_id}").json()["event_type"] == "finished")
            with connect(server.url.replace("http", "ws") + "/plain/live") as socket:
                socket.send('{"seed": 2}')
                socket.recv()
        until(lambda: {"task", "change"} <= {span.name for _, span in collector.spans})
        for name in ("task", "change"):
            (whole,) = [span for _, span in collector.spans if span.name == name]
            until(lambda: len([span for _, span in collector.spans if span.parent_span_id == whole.span_id]) >= 3)  # noqa: B023
            parts = {span.name for _, span in collector.spans if span.parent_span_id == whole.span_id}
            assert {"queue", "model", "encode"} <= parts
            if name == "task":
                assert {item.key: item.value.string_value for item in whole.attributes}["task.id"] == task_id


def test_a_collector_that_is_gone_costs_nobody_a_picture(tmp_path: Path) -> None:
    with serve(write(tmp_path, "http://127.0.0.1:9/v1/traces")) as server:
        assert httpx.post(f"{server.url}/plain/generate", timeout=60).status_code == 200
