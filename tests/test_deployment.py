"""The files in guni/ by the programs that read them, where those are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml

from tests.checkpoints import tiny_precure
from tests.serving import ROOT, free_port, serve, write_config

GUNI = ROOT / "guni"


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)


@needs("systemd-analyze")
def test_systemd_units_are_valid(tmp_path: Path) -> None:
    for name in ("stylegan-fastapi.service", "stylegan-fastapi.socket"):
        text = (GUNI / name).read_text()
        # The paths of an installation need not exist where the file is checked.
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE)
        text = re.sub(r"^(User|Group|SocketUser)=\w+", r"\1=root", text, flags=re.MULTILINE)
        (tmp_path / name).write_text(text)
    done = run("systemd-analyze", "verify", "--man=no", tmp_path / "stylegan-fastapi.service", tmp_path / "stylegan-fastapi.socket")
    complaints = [line for line in done.stderr.splitlines() if "stylegan-fastapi" in line]
    assert not complaints, done.stderr


@needs("logrotate")
def test_logrotate_accepts_its_file() -> None:
    done = run("logrotate", "--debug", GUNI / "stylegan-fastapi.logrotate")
    assert done.returncode == 0, done.stderr
    assert "error:" not in done.stderr


@needs("nginx")
def test_nginx_serves_the_site(tmp_path: Path) -> None:
    """The site of guni/nginx.conf before gunicorn's Unix socket, with limits that need the client's address."""
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    models = {"plain": {"file": "plain.safetensors", "relative": True}}
    http = {"forwarded": True, "forwarded_headers": ["X-Forwarded-For"], "trusted_proxies": ["unix"]}
    limit = {"rate": {"enabled": True, "max_request": 3}}
    config = write_config(tmp_path, models, {"http": http, "limit": limit, "engine": {"linger": 1.0}})
    path, port = tmp_path / "http.sock", free_port()
    site = (GUNI / "nginx.conf").read_text().replace("unix:/run/stylegan-fastapi.sock", f"unix:{path}")
    site = site.replace("listen 80;", f"listen 127.0.0.1:{port};").replace("listen [::]:80;", "")
    whole = f"user root; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log; events {{}} http {{ access_log off; {site} }}"
    (tmp_path / "nginx.conf").write_text(whole)
    with serve(config, workers=2, options=["--bind", f"unix:{path}"], ready=False):
        while not path.exists():
            time.sleep(0.05)
        proxy = subprocess.Popen(["nginx", "-c", str(tmp_path / "nginx.conf"), "-g", "daemon off;"])
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                for _ in range(100):
                    try:
                        if client.get("/healthz").status_code == 200:
                            break
                    except httpx.TransportError:
                        time.sleep(0.05)
                spoofed = [client.post("/plain/generate", headers={"X-Forwarded-For": f"192.0.2.{number}"}) for number in range(5)]
                assert [answer.status_code for answer in spoofed] == [200, 200, 200, 429, 429]
                assert client.get("/plain/image", params={"seed": 1, "format": "webp"}).status_code == 429
        finally:
            proxy.terminate()
            proxy.wait(10)


def test_compose_names_what_exists() -> None:
    compose = yaml.safe_load((GUNI / "compose.yaml").read_text())
    for service in compose["services"].values():
        build = service["build"]
        context = (GUNI / build["context"]).resolve()
        assert (context / build["dockerfile"]).is_file()
        for volume in service["volumes"]:
            assert volume.split(":")[0] in compose["volumes"]


def test_dockerfile_copies_what_exists_and_runs_as_a_user() -> None:
    lines = (GUNI / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    for words in (step[1].split() for step in steps if step[0] == "COPY"):
        assert all((ROOT / source).exists() for source in words[:-1]), words
    assert [step[1] for step in steps if step[0] == "USER"] == ["stylegan"]
    copied = {source for step in steps if step[0] == "COPY" for source in step[1].split()[:-1]}
    assert {"api", "guni", "default", "main.py", "requirements.txt"} <= copied


def test_the_docker_steps_make_a_server_that_runs_elsewhere(tmp_path: Path) -> None:
    """What the Dockerfile copies is enough to serve: run from a folder that holds only that."""
    copied = [source for line in (GUNI / "Dockerfile").read_text().splitlines() if line.startswith("COPY") for source in line.split()[1:-1]]
    home = tmp_path / "home"
    home.mkdir()
    for source in copied:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, home / source, ignore=shutil.ignore_patterns("node_modules", "__pycache__", "models", "dist"))
        else:
            shutil.copy(ROOT / source, home / source)
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    shutil.copytree(ROOT / "api" / "models", home / "api" / "models", dirs_exist_ok=True)
    config = write_config(tmp_path, {"plain": {"file": "plain.safetensors", "relative": True}}, {"engine": {"linger": 1.0}})
    with serve(config, workers=1, home=home) as server:
        assert server.client.post("/plain/generate").status_code == 200
