"""Imported before ``api`` by the recipes, which are programs: puts the project's folder on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
