"""Steady states, transients and equilibria of scaled cells."""
