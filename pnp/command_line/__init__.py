"""Cells described in TOML: reading, running, and what is written. `python -m pnp` is the door."""
