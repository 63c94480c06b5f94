"""README's walk over several hosts, as it stands there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import network
from tests.serving import ROOT
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
