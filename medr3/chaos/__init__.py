"""Faults on the real processes of a run, and what must hold after them."""
