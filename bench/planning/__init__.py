"""What ``python -m bench plan`` is made of: arrivals, what they cost, the simulation, and a real run to compare it with."""
