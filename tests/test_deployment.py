"""The files in guni/ by the programs that read them, where those are installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from websockets.sync.client import connect

from api.cluster import fill_in
from api.conf import load_config
from tests import redises
from tests.checkpoints import tiny_precure
from tests.serving import ROOT, free_port, serve, write_config

GUNI = ROOT / "guni"
TOML = ROOT / "default" / "cluster.toml"
IMAGE = "stylegan-fastapi:cluster"
UNITS = sorted(path.name for path in GUNI.glob("stylegan-fastapi*.s*"))


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)


@needs("systemd-analyze")
def test_systemd_units_are_valid(tmp_path: Path) -> None:
    assert [f"stylegan-fastapi{part}" for part in ("-head.service", "-models.service", "-worker.service", ".service", ".socket")] == UNITS
    drop_in = tmp_path / "stylegan-fastapi.service.d" / "cluster.conf"
    drop_in.parent.mkdir()
    for name in (*UNITS, "stylegan-fastapi-cluster.conf"):
        text = (GUNI / name).read_text()
        # The paths of an installation need not exist where the file is checked.
        text = re.sub(r"^(Exec\w+)=/opt/\S+", r"\1=/bin/true", text, flags=re.MULTILINE)
        text = re.sub(r"^(User|Group|SocketUser)=\w+", r"\1=root", text, flags=re.MULTILINE)
        (tmp_path / name if name in UNITS else drop_in).write_text(text)
    done = run("systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in UNITS))
    complaints = [line for line in done.stderr.splitlines() if "stylegan-fastapi" in line]
    assert not complaints, done.stderr


@needs("logrotate")
def test_logrotate_accepts_its_file() -> None:
    done = run("logrotate", "--debug", GUNI / "stylegan-fastapi.logrotate")
    assert done.returncode == 0, done.stderr
    assert "error:" not in done.stderr


@contextlib.contextmanager
def nginx(folder: Path, port: int, *sites: str) -> Iterator[httpx.Client]:
    """Debian's nginx with these sites, on ``port`` instead of 80."""
    text = "\n".join(sites).replace("listen 80;", f"listen 127.0.0.1:{port};").replace("listen [::]:80;", "")
    whole = f"user root; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}} http {{ access_log off; {text} }}"
    (folder / "nginx.conf").write_text(whole)
    proxy = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(200):
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/healthz").status_code == 200:
                        break
                time.sleep(0.05)
            yield client
    finally:
        proxy.terminate()
        proxy.wait(10)


def hear(port: int, client: httpx.Client) -> list[str]:
    """The kinds of the events of a new task, told by the WebSocket behind nginx."""
    with connect(f"ws://127.0.0.1:{port}/events", open_timeout=60) as socket:
        client.post("/task", json={"params_type": "generate", "seed": 1}).raise_for_status()
        kinds = [json.loads(socket.recv(timeout=60))["event_type"]]
        while kinds[-1] not in ("finished", "failed"):
            kinds.append(json.loads(socket.recv(timeout=60))["event_type"])
        return kinds


@needs("nginx")
def test_nginx_serves_the_site(tmp_path: Path) -> None:
    """The site of guni/nginx.conf before gunicorn's Unix socket, with limits that need the client's address."""
    tiny_precure(tmp_path / "plain.safetensors", levels=3)
    models = {"plain": {"file": "plain.safetensors", "relative": True}}
    http = {"forwarded": True, "forwarded_headers": ["X-Forwarded-For"], "trusted_proxies": ["unix"]}
    limit = {"rate": {"enabled": True, "max_request": 4}}
    config = write_config(tmp_path, models, {"http": http, "limit": limit, "engine": {"linger": 1.0}})
    path, port = tmp_path / "http.sock", free_port()
    site = (GUNI / "nginx.conf").read_text().replace("unix:/run/stylegan-fastapi.sock", f"unix:{path}")
    with serve(config, workers=2, options=["--bind", f"unix:{path}"], ready=False):
        while not path.exists():
            time.sleep(0.05)
        with nginx(tmp_path, port, site) as client:
            assert hear(port, client)[-1] == "finished"
            spoofed = [client.post("/plain/generate", headers={"X-Forwarded-For": f"192.0.2.{number}"}) for number in range(5)]
            assert [answer.status_code for answer in spoofed] == [200, 200, 200, 429, 429]
            assert client.get("/plain/image", params={"seed": 1, "format": "webp"}).status_code == 429


@needs("nginx")
def test_nginx_goes_on_with_the_hosts_that_are_left(tmp_path: Path) -> None:
    """Two servers and one Redis, behind the site for several hosts."""
    http = {"forwarded": True, "trusted_proxies": ["127.0.0.1"]}
    server = {"http": http, "limit": {"rate": {"enabled": True, "max_request": 1000}}, "engine": {"linger": 1.0}}
    shared = {"store": {"url": f"sqlite:///{tmp_path}/store"}, "blobs": {"url": str(tmp_path / "blobs")}}
    shared["cluster"] = {"redis": redises.shared().new_url()}
    files = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        tiny_precure(folder / "plain.safetensors", levels=3)
        models = {"plain": {"file": "plain.safetensors", "relative": True}}
        files.append(write_config(folder, models, server, **shared))
    port = free_port()
    with contextlib.ExitStack() as first, serve(files[1]) as two:
        one = first.enter_context(serve(files[0]))
        hosts = (GUNI / "nginx-hosts.conf").read_text().replace("one:8000", one.url[7:]).replace("two:8000", two.url[7:])
        with nginx(tmp_path, port, hosts, (GUNI / "nginx-cluster.conf").read_text()) as client:
            assert "one:8000" not in hosts
            assert hear(port, client)[-1] == "finished"
            first.close()
            answers = [client.get(f"/plain/image?seed={seed}") for seed in range(8)]
            answers += [client.post("/plain/generate"), client.post("/task", json={"params_type": "generate"})]
            assert {answer.status_code for answer in answers} <= {200, 201, 202}
            two.process.kill()
            two.process.wait()
            away = client.post("/plain/generate")
            assert (away.status_code, away.headers["retry-after"], away.json()) == (503, "1", {"detail": "the server is away"})


def load_compose(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((GUNI / name).read_text())
    return loaded


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cluster.yaml"])
def test_compose_names_what_exists(name: str) -> None:
    compose = load_compose(name)
    importlib.import_module("compose_spec").PyCompose.from_json(json.dumps(compose)).validate()
    for service in compose["services"].values():
        if build := service.get("build"):
            context = (GUNI / build["context"]).resolve()
            assert (context / build["dockerfile"]).is_file()
            arguments = set(re.findall(r"^ARG (\w+)", (context / build["dockerfile"]).read_text(), re.MULTILINE))
            assert build.get("args", {}).keys() <= arguments
            assert "REQUIREMENTS" not in build.get("args", {}) or (context / build["args"]["REQUIREMENTS"]).is_file()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (GUNI / source).is_file() if source.startswith(".") else source in compose["volumes"]
        assert service.get("depends_on", {}).keys() <= compose["services"].keys()
        assert {config["source"] for config in service.get("configs", [])} <= compose.get("configs", {}).keys()
        for other, wish in service.get("depends_on", {}).items():
            checked = compose["services"][other].get("healthcheck") or "build" in compose["services"][other]
            assert wish["condition"] != "service_healthy" or checked, other
    # A password that is missing is told; nothing else may be left out without a word.
    for variable in re.findall(r"(?<!\$)\$\{?(\w+[^}\s\"]*)", (GUNI / name).read_text().split("services:", 1)[1]):
        assert re.fullmatch(r"\w+:[?-].*", variable), variable


def test_compose_toml_and_site_agree() -> None:
    services, conf = load_compose("compose.cluster.yaml")["services"], load_config(TOML)
    assert conf.cluster.engine == "ray"
    assert conf.cluster.redis is not None
    assert conf.store.url is not None
    assert conf.blobs.url is not None
    redis, store = urlsplit(conf.cluster.redis), urlsplit(conf.store.url)
    assert {redis.hostname, store.hostname} <= services.keys()
    assert (store.username, store.path[1:]) == tuple(services["postgres"]["environment"][f"POSTGRES_{key}"] for key in ("USER", "DB"))
    web = services["web"]
    given = {key: value.split(":")[0] for key, value in web["environment"].items() if value.startswith("$")}
    names = {key: key for key in ("REDIS_PASSWORD", "SECRET_KEY", "RAY_AUTH_TOKEN")} | {"PGPASSWORD": "POSTGRES_PASSWORD"}
    assert given == {key: "${" + name for key, name in names.items()}
    # Only web workers are told the passwords of what they alone need; all of Ray's hosts the cluster's.
    knowing = {name for name, service in services.items() if "RAY_AUTH_TOKEN" in service.get("environment", {})}
    assert knowing == {"head", "worker", "models", "web"}
    assert [name for name, service in services.items() if "PGPASSWORD" in service.get("environment", {})] == ["web"]
    assert (ROOT / web["environment"]["STYLEGAN_TOML"]) == TOML
    assert [volume.split(":")[1] for volume in web["volumes"]] == [conf.blobs.url]
    assert conf.blobs.url in (GUNI / "Dockerfile").read_text()  # made there for the user that the server is
    upstream = load_compose("compose.cluster.yaml")["configs"]["hosts"]["content"]
    (name,) = re.findall(r"^upstream (\w+)", upstream, re.MULTILINE)
    assert set(re.findall(r"proxy_pass http://(\w+);", (GUNI / "nginx-cluster.conf").read_text())) == {name}
    assert f"upstream {name} " in (GUNI / "nginx-hosts.conf").read_text()
    (address,) = re.findall(r"server (\S+)", upstream)
    assert address.split(":")[0] in services
    assert web["command"][-1].endswith(address[address.index(":") :])
    assert f"EXPOSE {address.split(':')[1]}" in (GUNI / "Dockerfile").read_text()


def test_the_toml_for_several_hosts_can_be_used() -> None:
    conf = load_config(TOML)
    assert all(model.file.exists() for model in conf.models.values())
    assert fill_in(conf, None, None, "se/cret").cluster.redis == "redis://:se%2Fcret@redis:6379/0"
    plain = tomllib.loads(TOML.read_text())
    assert plain["models"].keys() == load_config(ROOT / "default" / "config.toml").models.keys()


def ray_commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``ray start …`` of the files, and those that KubeRay makes of its parameters."""
    for name, service in load_compose("compose.cluster.yaml")["services"].items():
        words = shlex.split(" ".join(service.get("command", [])))
        if ("ray", "start") in pairwise(words):
            yield f"compose {name}", words[words.index("start") + 1 :]
    for unit in UNITS:
        for line in re.findall(r"^ExecStart=\S+/ray start (.*)$", (GUNI / unit).read_text(), re.MULTILINE):
            yield unit, line.split()
    spec = next(part["spec"] for part in kubernetes() if part["kind"] == "RayCluster")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pairs = group["rayStartParams"].items()
        yield "kuberay", [f"--{key}" if value == "true" else f"--{key}={value}" for key, value in pairs]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed; see requirements-cluster.txt")
@pytest.mark.filterwarnings("ignore")
def test_ray_takes_the_options() -> None:
    start = importlib.import_module("ray.scripts.scripts").start
    seen = []
    for name, options in ray_commands():
        start.make_context(f"start ({name})", list(options))
        seen.append(name)
    assert seen == [
        "compose head",
        "compose worker",
        "stylegan-fastapi-head.service",
        "stylegan-fastapi-worker.service",
        "kuberay",
        "kuberay",
    ]


def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((GUNI / "kuberay.yaml").read_text()))


def pods() -> dict[str, dict[str, Any]]:
    """The pods' specifications by the names of their containers, of which each has one."""
    found = {}
    for part in kubernetes():
        if part["kind"] == "RayCluster":
            groups = [part["spec"]["headGroupSpec"], *part["spec"]["workerGroupSpecs"]]
        else:
            groups = [part["spec"]] if "template" in part.get("spec", {}) else []
        for group in groups:
            (container,) = group["template"]["spec"]["containers"]
            found[container["name"]] = group["template"]["spec"]
    return found


def test_kubernetes_knows_every_key() -> None:
    """By the schema of Kubernetes; KubeRay's own has pods in it, which are checked, and a few keys of its own."""
    validate = importlib.import_module("kubernetes_validate").validate
    for part in kubernetes():
        if part["kind"] != "RayCluster":
            validate(part, "1.32", strict=True)
            continue
        assert part["apiVersion"] == "ray.io/v1"
        spec = part["spec"]
        assert spec.keys() == {"rayVersion", "gcsFaultToleranceOptions", "headGroupSpec", "workerGroupSpecs"}
        assert spec["headGroupSpec"].keys() == {"rayStartParams", "template"}
        for group in spec["workerGroupSpecs"]:
            assert group.keys() == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            validate(
                {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}, "1.32", strict=True
            )


def test_kubernetes_parts_agree() -> None:
    parts = {(part["kind"], part["metadata"]["name"]): part for part in kubernetes()}
    conf, text = load_config(TOML), (GUNI / "kuberay.yaml").read_text()
    web, models = pods()["web"], pods()["models"]
    assert {container["image"] for spec in pods().values() for container in spec["containers"]} == {IMAGE}
    for spec in pods().values():
        mounted = [mount["name"] for mount in spec["containers"][0].get("volumeMounts", [])]
        assert sorted(mounted) == sorted(volume["name"] for volume in spec.get("volumes", []))
    # What is made by hand, as the file's first lines say, is what is asked for.
    secret = set(re.findall(r"--from-literal=([\w-]+)=", text))
    for spec in pods().values():
        assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= {variable["name"] for variable in spec["containers"][0]["env"]}
    assert set(re.findall(r"secretKeyRef: { name: stylegan, key: ([\w-]+)", text)) == secret
    (key, source) = re.findall(r"configmap stylegan --from-file=(\S+)=(\S+)", text)[0]
    assert ROOT / source == TOML
    for spec in (web, models):
        assert {"name": "settings", "configMap": {"name": "stylegan"}} in spec["volumes"]
    file = f"/etc/stylegan-fastapi/{key}"
    assert {"name": "STYLEGAN_TOML", "value": file} in web["containers"][0]["env"]
    assert models["containers"][0]["args"] == ["python", "-m", "api", "deploy", file]
    mounts = {mount["name"]: mount["mountPath"] for mount in web["containers"][0]["volumeMounts"]}
    assert (mounts["settings"], mounts["pictures"]) == (str(Path(file).parent), conf.blobs.url)
    (claim,) = [volume["persistentVolumeClaim"]["claimName"] for volume in web["volumes"] if "persistentVolumeClaim" in volume]
    assert ("PersistentVolumeClaim", claim) in parts
    # Addresses. KubeRay calls the head's Service so.
    (cluster,) = [name for kind, name in parts if kind == "RayCluster"]
    for spec in (web, models):
        assert spec["containers"][0]["command"] == ["python", "-m", "guni.node", f"{cluster}-head-svc:6379"]
    assert conf.cluster.redis is not None
    assert urlsplit(conf.cluster.redis).netloc == parts["RayCluster", cluster]["spec"]["gcsFaultToleranceOptions"]["redisAddress"]
    deployment, service = parts["Deployment", "stylegan-web"]["spec"], parts["Service", "stylegan"]["spec"]
    assert service["selector"] == deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"]
    (port,) = web["containers"][0]["ports"]
    assert service["ports"][0]["targetPort"] == port["name"]
    assert web["containers"][0]["args"][-1] == f"0.0.0.0:{port['containerPort']}"
    # Every way of ending gives gunicorn the time that it gives its workers.
    graceful = importlib.import_module("guni.conf").graceful_timeout
    assert web["terminationGracePeriodSeconds"] > graceful
    assert int(load_compose("compose.cluster.yaml")["services"]["web"]["stop_grace_period"].rstrip("s")) > graceful


def test_kubernetes_has_the_ray_of_the_image() -> None:
    specifiers = importlib.import_module("packaging.requirements")
    lines = (ROOT / "requirements-cluster.txt").read_text().splitlines()
    (wanted,) = [specifiers.Requirement(line) for line in lines if line.startswith("ray")]
    assert wanted.specifier.contains(next(part["spec"]["rayVersion"] for part in kubernetes() if part["kind"] == "RayCluster"))


def test_a_node_says_what_is_wrong(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "guni.node", "head:6379"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.partition(":")[0]) == (2, "usage")


@pytest.mark.skipif(shutil.which("hadolint", path=str(Path(sys.executable).parent)) is None, reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say() -> None:
    done = run(Path(sys.executable).parent / "hadolint", "--no-color", GUNI / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_dockerfile_copies_what_exists_and_runs_as_a_user() -> None:
    lines = (GUNI / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    for words in (step[1].split() for step in steps if step[0] == "COPY"):
        assert all((ROOT / source).exists() for source in words[:-1]), words
    (uid,) = [step[1] for step in steps if step[0] == "USER"]
    assert f"--uid {uid} " in (GUNI / "Dockerfile").read_text()
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
