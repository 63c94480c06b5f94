"""The log as JSON: every line that any process of the server writes is an object."""

from __future__ import annotations

import io
import json
import logging
import os
from pathlib import Path

import pytest

from api.logs import LINES, JsonFormatter, LineFormatter, Stream, handle_all
from tests.checkpoints import tiny_precure
from tests.serving import serve, write_config
from tests.test_gunicorn import until


@pytest.mark.parametrize(("workers", "logger"), [(0, None), (0, "uvicorn"), (1, None), (1, "gunicorn.error")])
def test_every_line_is_an_object(tmp_path: Path, workers: int, logger: str | None) -> None:
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    models = {"plain": {"file": "plain.safetensors", "relative": True}, "none": {"file": "missing.safetensors"}}
    named = {} if logger is None else {"logger": logger}
    config = write_config(tmp_path, models, {"log": "json", "engine": {"linger": 1.0}, **named})
    with serve(config, workers=workers, ready=False) as server:
        until(lambda: server.process.poll() is None and "none cannot be loaded" in server.log.read_text())
        answer = server.client.post("/plain/generate?seed=1&token=secret", headers={"X-Request-ID": "here"})
        assert answer.status_code == 200
        until(lambda: '"request_id": "here"' in server.log.read_text())
        lines = server.log.read_text().splitlines()
    objects = [json.loads(line) for line in lines if line.startswith("{")]
    (line,) = [found for found in objects if found.get("request_id") == "here"]
    assert (line["method"], line["path"], line["route"], line["status"]) == ("POST", "/plain/generate", "/{model_id}/generate", 200)
    assert line["ms"] > 0
    assert {"time", "level", "logger", "pid", "message"} <= line.keys()
    assert any(found["logger"] == "api.engine.host" or "cannot be loaded" in found["message"] for found in objects)
    own = [found for found in lines if not found.startswith("{")]
    assert not [found for found in own if "api" in found or "engine" in found], own
    assert "secret" not in "\n".join(lines)


def test_nobody_writes_lines_of_the_log(tmp_path: Path) -> None:
    """A path is percent-decoded, and may hold anything."""
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    config = write_config(tmp_path, {"plain": {"file": "plain.safetensors", "relative": True}}, {"engine": {"linger": 1.0}})
    with serve(config) as server:
        path = '/plain/x%0A2026-01-01 00:00:00,000 INFO 127.0.0.1 "POST %2Fforged" 200%1b[2J%e2%80%a8'
        assert server.client.get(path, headers={"X-Request-ID": "here"}).status_code == 404
        until(lambda: " here\n" in server.log.read_text())
        (line,) = [line for line in server.log.read_text().splitlines() if line.endswith(" here")]
    assert "%0A2026" in line
    assert "/forged" in line
    assert line.isprintable()


@pytest.mark.parametrize(("form", "formatter"), [("text", logging.Formatter(LINES)), ("json", JsonFormatter())])
def test_many_lines_at_once_are_those_of_each(form: str, formatter: logging.Formatter) -> None:
    loud, quiet, other = io.StringIO(), io.StringIO(), io.StringIO()
    logger, above = logging.Logger("here"), logging.Logger("above")
    logger.parent = above
    for handler, level in ((Stream(loud), logging.INFO), (Stream(quiet), logging.WARNING)):
        handler.setFormatter(LineFormatter() if form == "text" else JsonFormatter())
        handler.setLevel(level)
        logger.addHandler(handler)
    above.addHandler(plain := logging.StreamHandler(other))
    plain.setFormatter(formatter)
    records = [logger.makeRecord("here", level, "", 0, "%s", (text,), None) for level, text in ((20, "one"), (30, "zwölf"), (20, "three"))]
    for number, record in enumerate(records):
        record.created, record.msecs = 1.7e9 + 0.4 * number + 0.005, (400 * number + 5) % 1000
    records[0].exc_info = (ValueError, ValueError("no"), None)
    handle_all(logger, records)
    lines = [formatter.format(record) for record in records]
    assert loud.getvalue() == other.getvalue() == "".join(f"{line}\n" for line in lines)
    assert quiet.getvalue() == lines[1] + "\n"
    assert "ValueError: no" in lines[0]
    logger.propagate = False
    logger.handlers[0].addFilter(lambda record: "t" in record.getMessage())
    handle_all(logger, records[1:])
    assert loud.getvalue().endswith(f"{lines[2]}\n{lines[2]}\n")
    assert other.getvalue().count("\n") == len(lines[0].splitlines()) + 2


def test_a_line_that_cannot_be_written_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("here")
    with open(os.devnull) as unwritable:
        logger.addHandler(Stream(unwritable))
        handle_all(logger, [logger.makeRecord("here", 20, "", 0, "%s", ("one",), None)])
    assert "--- Logging error ---" in capsys.readouterr().err
