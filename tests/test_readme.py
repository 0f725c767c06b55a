"""Every Python block of the README and of the page on judging runs, and prints what the block after it says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)
BLOCKS = BLOCK.findall(README.read_text(encoding="utf-8"))
JUDGING = BLOCK.findall((README.parent / "docs" / "judging.md").read_text(encoding="utf-8"))


def test_there_are_examples_with_output():
    assert len(BLOCKS) >= 2
    assert any(output for _, output in BLOCKS)


@pytest.mark.parametrize(("code", "output"), BLOCKS + JUDGING)
def test_a_block_prints_what_the_readme_shows(code, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(README), "exec"), {"__name__": "__readme__"})
    assert printed.getvalue().strip() == output.strip()


def test_it_is_short_and_its_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text):
        path = target[0] or target[1]
        if not path.startswith("http"):
            assert (README.parent / path).exists(), path
