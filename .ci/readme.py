"""Runs the console blocks of README that begin with ``$ curl`` and compares what they print.

A line ``…`` in README stands for anything. Usage: readme.py README FOLDER PORT
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def examples(text: str) -> list[tuple[str, str]]:
    """Each curl command of the console blocks with the output that is shown for it."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            end = next(index for index, line in enumerate(lines) if not line.endswith("\\")) + 1
            command = "\n".join(lines[:end])
            if command.startswith("curl"):
                found.append((command, "\n".join(lines[end:]).strip()))
    return found


def agrees(shown: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(piece) for piece in shown.split("…"))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def main(readme: str, folder: str, port: str) -> int:
    wrong = 0
    calls = examples(Path(readme).read_text(encoding="utf-8"))
    for command, shown in calls:
        real = command.replace("localhost:8000", f"127.0.0.1:{port}")
        run = subprocess.run(["bash", "-c", real], cwd=folder, capture_output=True, text=True, timeout=120)
        if run.returncode or not agrees(shown, run.stdout):
            wrong += 1
            print(f"$ {command}\nexit status {run.returncode}\nexpected: {shown}\nprinted: {run.stdout}{run.stderr}")
    print(f"{len(calls)} curl calls of README, {wrong} wrong")
    return 1 if wrong or not calls else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
