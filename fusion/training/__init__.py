"""Training of a fusion layer on labelled features."""
