"""Features of several modalities, the files that hold them, and sets that need no download."""
