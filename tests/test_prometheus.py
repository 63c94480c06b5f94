"""Metrics, rules and dashboard by Prometheus' own tool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from api.telemetry import Telemetry
from tests.checkpoints import tiny_precure
from tests.serving import ROOT, serve, write_config
from tests.test_gunicorn import until

RULES = ROOT / "guni" / "prometheus-rules.yml"
pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus")


def promtool(*arguments: str | Path, text: str | None = None) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr


def dashboard() -> list[str]:
    """The expressions of all panels."""
    panels = json.loads((ROOT / "guni" / "grafana.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_metrics_of_a_server_that_has_worked(tmp_path: Path) -> None:
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    models = {"plain": {"file": "plain.safetensors", "relative": True}, "none": {"file": "missing.safetensors"}}
    limit = {"rate": {"enabled": True, "max_request": 2}}
    with serve(write_config(tmp_path, models, {"limit": limit, "engine": {"linger": 1.0}}), ready=False) as server:
        until(lambda: "none cannot be loaded" in server.log.read_text())
        assert [server.client.post("/plain/generate").status_code for _ in range(3)] == [200, 200, 429]
        until(lambda: 'stylegan_encode_seconds_count{model="plain"} 2.0' in server.client.get("/metrics").text)
        text = server.client.get("/metrics").text
    promtool("check", "metrics", text=text)
    found = {
        (sample.name, *sample.labels.values()): sample.value for family in text_string_to_metric_families(text) for sample in family.samples
    }
    assert found["stylegan_model_ready", "plain"] == 1
    assert found["stylegan_model_ready", "none"] == 0
    assert found["stylegan_queue_seconds_sum", "plain"] > 0
    assert found["stylegan_batch_seconds_count", "plain"] == 2
    assert found["stylegan_batch_seconds_sum", "plain"] > found["stylegan_encode_seconds_sum", "plain"] > 0
    assert found["stylegan_encode_seconds_count", "plain"] == 2


def test_rules_are_valid_and_fire(tmp_path: Path) -> None:
    promtool("check", "rules", RULES)
    series = [
        {"series": 'stylegan_model_ready{model="m", instance="a"}', "values": "1x15 0x30"},
        {"series": 'stylegan_engine_restarts_total{device="cpu"}', "values": "0x25 1 2 3 4 4x20"},
        {"series": 'stylegan_requests_total{status="200"}', "values": "0+60x60"},
        {"series": 'stylegan_requests_total{status="500"}', "values": "0x15 0+6x40"},
        {"series": 'stylegan_requests_total{status="503"}', "values": "0x15 0+60x40"},
        {"series": 'stylegan_queue_seconds_bucket{model="m", le="5.0"}', "values": "0x60"},
        {"series": 'stylegan_queue_seconds_bucket{model="m", le="10.0"}', "values": "0+9x60"},
        {"series": 'stylegan_queue_seconds_bucket{model="m", le="+Inf"}', "values": "0+9x60"},
    ]
    firing = {
        "ModelNotReady": ({"model": "m", "severity": "page"}, "m cannot be served; /readyz and the log say why"),
        "EngineDies": ({"device": "cpu", "severity": "page"}, "the engine of cpu has died 4 times in 15 minutes"),
        "RequestsFail": ({"severity": "page"}, "4.762% of the requests fail; the log names them by id"),
        "TooBusy": ({"severity": "ticket"}, "47.62% of the requests are refused for want of capacity"),
        "SlowDevice": ({"model": "m", "severity": "ticket"}, "pictures of m wait 9.75s for their device"),
    }
    tests: list[dict[str, Any]] = []
    for name, (labels, summary) in firing.items():
        told = {"exp_labels": labels, "exp_annotations": {"summary": summary}}
        tests += [{"eval_time": "5m", "alertname": name, "exp_alerts": []}, {"eval_time": "35m", "alertname": name, "exp_alerts": [told]}]
    assert firing.keys() == {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    suite = {"rule_files": [str(RULES)], "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": tests}]}
    (tmp_path / "suite.yml").write_text(yaml.safe_dump(suite))
    promtool("test", "rules", tmp_path / "suite.yml")


def test_the_dashboard_asks_for_what_there_is(tmp_path: Path) -> None:
    """Each expression is valid, and each metric in it, and in the rules, is one that the server has."""
    asked = dashboard()
    rules = [{"record": f"panel:{i}", "expr": re.sub(r"\$__rate_interval", "5m", expr)} for i, expr in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")
    telemetry = Telemetry(tmp_path, "test")
    exposed = set(re.findall(r"# TYPE (\w+)", telemetry.expose({"m": True}).decode()))
    names = {name for text in [*asked, RULES.read_text()] for name in re.findall(r"stylegan_\w+", text)}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in names} <= exposed
    assert len(names) > 8
