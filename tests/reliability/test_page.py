"""docs/reliability.md: what each tool of tools/faults puts into it, and leaves as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from oracles import REPOSITORY
from tool_modules import tool

page = tool("faults/page.py")


def test_a_part_and_a_figure_are_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(
        "head\n| kills | 10 | not run | | |\n| flips | 5 | 5 | `x` | 1 |\n"
        "<!-- part one -->\nold\n<!-- end of one -->\n<!-- part two -->\nkept\n<!-- end of two -->\n"
    )
    page.write_part(path, "one", "new\\1")
    page.write_figure(path, "kills", "10 of 10", "kill --all", 1234.4)
    assert path.read_text() == (
        "head\n| kills | 10 | 10 of 10 | `kill --all` | 1,234 |\n| flips | 5 | 5 | `x` | 1 |\n"
        "<!-- part one -->\n\nnew\\1\n\n<!-- end of one -->\n<!-- part two -->\nkept\n<!-- end of two -->\n"
    )
    with pytest.raises(LookupError):
        page.write_part(path, "on", "")
    with pytest.raises(LookupError):
        page.write_figure(path, "kil", "", "", 0)


def test_what_the_tools_write_has_its_place_on_the_page() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    for program in (REPOSITORY / "tools").rglob("*.py"):
        source = program.read_text()
        written = re.findall(r'write_part\([^,]+, "([^"]+)"|^FIGURE = "([^"]+)"', source, re.MULTILINE)
        writes = program.name != "page.py" and "write_figure(" in source
        assert any(figure for _, figure in written) == writes, f"{program}: its figure is not found here"
        for part, figure in written:
            assert (f"<!-- part {part} -->" if part else f"| {figure} |") in text, (
                f"{program}: {part}{figure}"
            )
