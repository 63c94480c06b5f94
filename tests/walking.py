"""Walking through a page: its console blocks, on hosts of their own.

A prompt names the host, or several: ``one$``, ``one,two$``. ``…`` in what is shown stands for anything. ``poweroff -f`` takes a host
from the network from one moment to the next; the next command there finds it started anew. Each host has an address, processes and files
of its own, and a shell that lasts; it has what the Dockerfile copies in /opt/stylegan-fastapi, and /mnt/pictures is one folder everywhere.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.hosts import Host, ip
from tests.serving import ROOT

HOME = "/opt/stylegan-fastapi"
PATIENCE = 300.0  # seconds for a command

# Files that are written on one host are not there on the next, nor here.
FILES = """
set -eu
project=$1 share=$2
mount -t tmpfs tmpfs /mnt
layer() {
    mkdir -p "$2" "/mnt/.layers$2/up" "/mnt/.layers$2/work"
    mount -t overlay overlay -o "lowerdir=$1,upperdir=/mnt/.layers$2/up,workdir=/mnt/.layers$2/work" "$2"
}
layer /etc /etc
layer /var /var
layer /opt /opt
layer "$project" /opt/stylegan-fastapi
mkdir /mnt/pictures
mount --bind "$share" /mnt/pictures
for folder in /run /dev/shm /tmp; do mount -t tmpfs tmpfs "$folder"; done
chmod 1777 /tmp /dev/shm
ip route add default via "$3"
"""


@dataclass(frozen=True)
class Step:
    """A command of a page with what the page shows for it; ``line`` is the page's."""

    hosts: tuple[str, ...]
    command: str
    shown: str
    line: int


def steps(page: str) -> list[Step]:
    """All commands of a page's console blocks that name their host."""
    found = []
    for block in re.finditer(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        text = block[1]
        starts = [*re.finditer(r"^([a-z][a-z0-9,]*)\$ ", text, re.MULTILINE)]
        ends = [*(item.start() for item in starts), len(text)][1:]
        for start, end in zip(starts, ends, strict=True):
            lines = text[start.end() : end].splitlines()
            last = next(index for index, line in enumerate(lines) if not line.endswith("\\")) + 1
            line = page.count("\n", 0, block.start(1) + start.start()) + 1
            found.append(Step(tuple(start[1].split(",")), "\n".join(lines[:last]), "\n".join(lines[last:]).strip(), line))
    return found


def agrees(shown: str, printed: str) -> bool:
    """Whether this is what was shown; blanks at the ends aside."""
    pattern = ".*".join(map(re.escape, shown.split("…")))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def copy_project(target: Path) -> None:
    """What the Dockerfile copies, and nothing else."""
    for line in (ROOT / "guni" / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            *sources, folder = line.split()[1:]
            for source in sources:
                place = target / folder
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("node_modules", "__pycache__"), dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / source, place)


class Shell:
    """A bash on a host, in which one command is run after the other."""

    def __init__(self, host: Host) -> None:
        environment = {
            **{key: value for key, value in os.environ.items() if key not in ("STYLEGAN_TOML", "PYTHONPATH")},
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
        }
        self.bash = subprocess.Popen(
            ["nsenter", "-t", str(host.first), "-n", "-p", "-m", "--", "bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

    def run(self, command: str, seconds: float = PATIENCE) -> tuple[int, str]:
        """Exit status, and what it printed. What it leaves in the background goes on."""
        assert self.bash.stdin is not None
        assert self.bash.stdout is not None
        mark = f"--{time.monotonic_ns()}--"
        text = base64.b64encode(command.encode()).decode()
        self.bash.stdin.write(f'eval "$(base64 -d <<< {text})" < /dev/null; printf "%s%d\\n" {mark} $?\n'.encode())
        self.bash.stdin.flush()
        told, end = b"", time.monotonic() + seconds
        while (found := re.search(mark.encode() + rb"(\d+)\n", told)) is None:
            ready, _, _ = select.select([self.bash.stdout], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{command}\nis not over after {seconds:.0f} s:\n{told.decode(errors='replace')[-4000:]}"
            piece = os.read(self.bash.stdout.fileno(), 65536)
            assert piece, f"{command}\nended the shell:\n{told.decode(errors='replace')[-4000:]}"
            told += piece
        return int(found[1]), told[: found.start()].decode(errors="replace")

    def close(self) -> None:
        self.bash.kill()
        self.bash.communicate()


class Walk:
    """Hosts by name; ``names`` may give one of them several."""

    def __init__(self, hosts: Iterator[Host], project: Path, share: Path, names: Sequence[Sequence[str]]) -> None:
        self.more, self.project, self.share = hosts, project, share
        self.hosts: dict[str, Host] = {}
        self.shells: dict[str, Shell] = {}
        self.off: set[str] = set()
        self.also: Mapping[str, Sequence[str]] = {group[0]: group for group in names}
        for name in self.also:
            self.start(name)
        self.introduce()

    def start(self, name: str) -> None:
        if name in self.hosts:  # with the address it had
            old = self.hosts[name]
            host = Host(old.link.rpartition("-")[0], int(old.link.rpartition("-")[2]), old.address.rpartition(".")[0])
        else:
            host = next(self.more)
        self.hosts[name] = host
        command = ["nsenter", "-t", str(host.first), "-n", "-p", "-m", "--", "sh", "-c", FILES, "sh", str(self.project), str(self.share)]
        subprocess.run([*command, host.address.rpartition(".")[0] + ".254"], check=True)
        self.shells[name] = Shell(host)
        self.off.discard(name)

    def introduce(self) -> None:
        """Tells all hosts each other's names."""
        lines = "".join(f"{host.address} {' '.join(self.also[name])}\n" for name, host in self.hosts.items())
        for name in self.hosts.keys() - self.off:
            # There is no name server; who asks one all the same is told so at once.
            self.shells[name].run(f"printf '127.0.0.1 localhost\\n%s' '{lines}' > /etc/hosts; : > /etc/resolv.conf")

    def run(self, name: str, command: str) -> tuple[int, str]:
        if name in self.off:
            self.start(name)
            self.introduce()
        if command == "poweroff -f":
            self.power_off(name)
            return 0, ""
        return self.shells[name].run(command)

    def power_off(self, name: str) -> None:
        host = self.hosts[name]
        host.switch_off()
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", host.link)  # the kernel keeps it while it still has something to send
        self.shells[name].close()
        self.off.add(name)

    def take(self, step: Step) -> None:
        for name in step.hosts:
            begun = time.monotonic()
            print(f"{name}$ {step.command}")
            status, printed = self.run(name, step.command)
            print(f"{printed}[{time.monotonic() - begun:.1f} s]", flush=True)
            assert agrees(step.shown, printed), f"line {step.line}: {name}$ {step.command}\nshown: {step.shown}\nprinted: {printed}"
            assert status == 0, f"line {step.line}: {name}$ {step.command}\nexit status {status}\n{printed}"

    def close(self) -> None:
        for name in self.hosts.keys() - self.off:
            self.power_off(name)
