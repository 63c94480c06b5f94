"""A command beside a node of the Ray cluster that itself computes nothing: web workers have to run on hosts of the cluster.

    python -m guni.node head:6379 gunicorn -c guni/conf.py --bind 0.0.0.0:8000

For containers, which have one command. Both end when either does, so that whoever keeps containers running starts both again.
Under systemd they are two units.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

STARTED = "Ray runtime started"
USAGE = "usage: python -m guni.node HEAD:PORT COMMAND…"


def start_node(address: str) -> subprocess.Popen[str]:
    """A node that has joined the cluster. Raises ``RuntimeError`` if it cannot."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--num-cpus=0", "--num-gpus=0"]
    node = subprocess.Popen([*command, "--disable-usage-stats", "--block"], stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None
    for line in node.stdout:
        if STARTED in line:
            threading.Thread(target=node.stdout.read, daemon=True).start()  # nobody else reads what more it says
            return node
        print(line, end="", file=sys.stderr)
    raise RuntimeError(f"the node did not join the cluster at {address}: exit status {node.wait()}")


def watch(*processes: subprocess.Popen[str]) -> None:
    """Returns when one of them has ended. In a container this is the first process, to which orphans are given."""
    ours = {process.pid for process in processes}
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        if ended is None or ended.si_pid in ours:
            return
        os.waitpid(ended.si_pid, 0)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2:
        print(USAGE, file=sys.stderr)
        return 2
    address, *command = arguments
    try:
        node = start_node(address)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    process = subprocess.Popen(command, text=True)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: process.send_signal(number))
    watch(node, process)
    if process.poll() is None:
        print("the node of the cluster has ended, and so does this", file=sys.stderr)
        process.terminate()
        process.wait()
        return 1
    node.terminate()
    node.wait()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
