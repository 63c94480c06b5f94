"""README's walk over several hosts, as it stands there."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.hosts import Host, network
from tests.serving import ROOT
from tests.test_gunicorn import until
from tests.walking import Step, Walk, agrees, copy_project, steps

README = ROOT / "README.md"
NAMES = [("store", "redis", "postgres"), ("one",), ("two",), ("head",), ("front",), ("me",)]

# What Debian's package does when it is installed, and what its administrator does afterwards.
DATABASE = """
set -eu
mkdir -p /run/postgresql /var/lib/walk
chown postgres /run/postgresql /var/lib/walk
cd /
as="runuser -u postgres --"
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
$as $bin/initdb -D /var/lib/walk/data -A trust -E UTF8 --locale=C --no-sync > /dev/null
echo "host all all samenet scram-sha-256" >> /var/lib/walk/data/pg_hba.conf
listen="-c listen_addresses=* -c unix_socket_directories=/run/postgresql"
$as $bin/pg_ctl -D /var/lib/walk/data -l /var/lib/walk/log -w -o "$listen" start > /dev/null
"""


def test_the_page_is_read() -> None:
    page = "text\n```console\na$ one \\\n  more\nshown…\n$ not here\n\nb,c$ two\n```\n```sh\na$ no\n```\n"
    assert steps(page) == [Step(("a",), "one \\\n  more", "shown…\n$ not here", 3), Step(("b", "c"), "two", "", 8)]
    assert agrees("a…c", "abbc\n")
    assert not agrees("a…c", "abbd")


def test_readme_names_hosts_that_the_walk_has() -> None:
    found = steps(README.read_text(encoding="utf-8"))
    assert {name for step in found for name in step.hosts} == {group[0] for group in NAMES}


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    for program in ("redis-server", "psql", "nginx", "curl", "runuser"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: scripts/packages")
    project, share = tmp_path / "project", tmp_path / "share"
    project.mkdir()
    share.mkdir()
    copy_project(project)
    with network() as hosts:
        made = Walk(hosts, project, share, NAMES)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.skipif(not os.environ.get("LONG"), reason="a walk over six hosts takes minutes: LONG=1 takes it")
def test_readme_is_walked(walk: Walk) -> None:
    status, printed = walk.run("store", DATABASE)
    assert status == 0, printed
    for step in steps(README.read_text(encoding="utf-8")):
        walk.take(step)


@pytest.mark.skipif(not os.environ.get("LONG"), reason="a cluster takes its time: LONG=1 runs it")
def test_a_node_and_its_command_end_together(walk: Walk) -> None:
    def take(host: str, command: str, shown: str) -> None:
        walk.take(Step((host,), command, shown, 0))

    for host in ("head", "one"):
        take(host, "cd /opt/stylegan-fastapi && export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=secret", "")
    take("head", "ray start --head --num-cpus=0 --disable-usage-stats", "…Ray runtime started…")
    node = "python -m guni.node head:6379 sh -c"
    take("one", f"{node} 'ray status > /dev/null && echo joined; exit 7' 2> /dev/null; echo $?", "joined\n7")
    take("one", f"{node} 'exec sleep 600' & pid=$!; until pgrep -x sleep; do sleep 0.2; done; kill $pid; wait $pid; echo $?", "…143")
    take(
        "one",
        f"{node} 'ray stop --force > /dev/null; exec sleep 600' 2>&1; echo $?",
        "…the node of the cluster has ended, and so does this\n1",
    )
    take("one", "pgrep -c raylet; pgrep -xc sleep; true", "0\n0")


SLOW = """
import http.server, sys, time

class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("asked", flush=True)
        time.sleep(float(sys.argv[1]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[2].encode())

    do_POST = do_GET

http.server.ThreadingHTTPServer(("", 8000), Slow).serve_forever()
"""


@pytest.mark.skipif(not os.environ.get("LONG"), reason="waits for the kernel to miss a host: LONG=1 does")
@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/faces/image", 200), ("POST", "/faces/generate", 200), ("POST", "/task", 503)]
)
def test_a_request_outlives_the_host_that_had_it(tmp_path: Path, method: str, path: str, status: int) -> None:
    """The wire is cut while the host is at work, so that nobody is told. What only computes is done by the other one."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: scripts/packages")
    guni = ROOT / "guni"
    with contextlib.ExitStack() as ends, (tmp_path / "log").open("wb") as log, network() as more:

        def begin(host: Host, *command: str) -> subprocess.Popen[bytes]:
            process = host.start(command, log)
            ends.callback(process.wait)  # it ends with its host
            return process

        one, two, front = next(more), next(more), next(more)
        for host, seconds, name in ((one, 300, "one"), (two, 0, "two")):
            begin(host, sys.executable, "-c", SLOW, str(seconds), name)
        hosts = (guni / "nginx-hosts.conf").read_text().replace("one:", f"{one.address}:").replace("two:", f"{two.address}:")
        # Asked first: of two that have nothing to do it is the first one's turn.
        site = hosts + (guni / "nginx-cluster.conf").read_text().replace("listen [::]:80;", "")
        (tmp_path / "conf").write_text(f"user root; pid {tmp_path}/pid; events {{}} http {{ access_log off; {site} }}")
        begin(front, "sysctl", "-qp", str(guni / "sysctl-cluster.conf")).wait(30)
        begin(front, "nginx", "-c", str(tmp_path / "conf"), "-e", str(tmp_path / "error"), "-g", "daemon off;")
        for address in (f"{one.address}:8000", f"{two.address}:8000", f"{front.address}:80"):
            until(lambda address=address: listens(address))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            asked = pool.submit(httpx.request, method, f"http://{front.address}{path}", timeout=120)
            until(lambda: b"asked" in (tmp_path / "log").read_bytes() or asked.done())
            assert not asked.done(), "the other host was asked"
            begun = time.monotonic()
            one.cut()
            answer = asked.result()
        print(f"{method} {path}: {answer.status_code} after {time.monotonic() - begun:.1f} s")
        assert answer.status_code == status
        assert status != 503 or answer.headers["retry-after"] == "1"


def listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
        return True
    return False
