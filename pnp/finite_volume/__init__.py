"""Vertex-centred finite volumes with Scharfetter-Gummel fluxes, in scaled variables."""
