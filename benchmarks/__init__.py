"""How fast `pnp` is, beside an expert's own solver and other codes; run from the root of the repository."""
