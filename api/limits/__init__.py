"""Who may compute now: rate, one request per client at a time, and a first-come-first-served queue, over all workers."""

from api.limits.admission import Admission
from api.limits.gate import Limits

__all__ = ["Admission", "Limits"]
