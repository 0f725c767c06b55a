"""Fusion layers: one interface, the published ones, the grounded one and plain baselines."""
