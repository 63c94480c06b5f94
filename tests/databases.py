"""The databases that tests run on: SQLite, and a PostgreSQL cluster of Debian's packages that is started for them."""

from __future__ import annotations

import atexit
import functools
import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest

KINDS = ("sqlite", "postgresql")


class Cluster:
    """A PostgreSQL server on a Unix socket in a temporary folder, without durability; it refuses to run as root, hence ``postgres``."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self.user = "postgres" if os.getuid() == 0 else getpass.getuser()
        if os.getuid() == 0:
            account = pwd.getpwnam(self.user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self.numbers = count()

    def start(self) -> None:
        data = str(self.folder / "data")
        self.run("initdb", "-D", data, "-A", "trust", "-U", self.user, "-E", "UTF8", "--locale=C", "--no-sync")
        self.boot()

    def boot(self) -> None:
        options = (
            f"-k {self.folder} -c listen_addresses= -c fsync=off -c full_page_writes=off -c max_connections=200 -c shared_buffers=16MB"
        )
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    def create(self) -> str:
        """The URL of a new, empty database."""
        name = f"test{next(self.numbers)}"
        self.run("psql", "-h", str(self.folder), "-U", self.user, "-qc", f"CREATE DATABASE {name}", "postgres")
        return f"postgresql://{self.user}@/{name}?host={self.folder}"

    def run(self, program: str, *arguments: str) -> None:
        drop: Sequence[str] = ("runuser", "-u", self.user, "--") if os.getuid() == 0 else ()
        done = subprocess.run([*drop, str(self.programs / program), *arguments], cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@functools.cache
def cluster() -> Cluster:
    """The one cluster of a test run; skips where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(path) for path in [shutil.which("initdb")] if path]
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    started = Cluster(found[-1].parent)
    started.start()
    atexit.register(started.stop)
    return started


def new_url(kind: str) -> str | None:
    """A new database for ``Store.open``: ``None`` stands for SQLite in its ``data_dir``."""
    return cluster().create() if kind == "postgresql" else None
