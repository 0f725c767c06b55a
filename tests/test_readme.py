"""The README is short and shows examples with their output; `test_pages.py` runs them."""

from .test_pages import EXAMPLES, TEXTS


def test_it_is_short_and_there_are_examples_with_output():
    assert len(TEXTS["README.md"].splitlines()) <= 120
    assert len(EXAMPLES["README.md"]) >= 2
    assert all(output for _, output in EXAMPLES["README.md"])
