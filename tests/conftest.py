"""Before torch is loaded: its threads wait without spinning, as tests share cores with servers; sums do not depend on addresses."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_CBWR", "AUTO")
for name in ("CI", "BUILD_NUMBER"):  # there, pytest compares pictures that differ byte by byte in text: minutes, and of no help
    os.environ.pop(name, None)
