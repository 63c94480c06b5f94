"""Before torch is loaded: its threads wait without spinning, as tests share cores with servers; sums do not depend on addresses."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_CBWR", "AUTO")
