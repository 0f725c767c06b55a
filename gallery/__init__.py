"""One figure a script: `python -m gallery` draws them all, and docs/gallery.md shows them."""
