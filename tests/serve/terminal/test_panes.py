"""Columns: what a width allows, whatever the text; and rows that never change once they are final."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lorafold.console import Row, cell_width
from lorafold.serve.terminal.panes import Panes, Wrapper, fitted, pane_width, wrapped
from lorafold.serve.terminal.views import Head, pane_headings

CHARACTERS = st.sampled_from(list("ab 中文。é\u0301👍🏽👨\u200d👩❤\ufe0f\n\t\r\x1b\x00\u202e\u3000x"))
TEXTS = st.text(CHARACTERS, max_size=80)


def flat(rows: list[Row]) -> list[str]:
    return ["".join(text for text, _ in row) for row in rows]


def test_words_are_wrapped_by_hand() -> None:
    assert flat(wrapped("one two three", 8)) == ["one two ", "three"]
    assert flat(wrapped("abcdefghij", 4)) == ["abcd", "efgh", "ij"]
    assert flat(wrapped("中文字符", 5)) == ["中文", "字符"]  # two columns each, lines may break between them
    assert flat(wrapped("a\n\nb", 9)) == ["a", "", "b"]
    assert flat(wrapped("\x1b]52;c;eA==\x07", 40)) == ["␛]52;c;eA==␇"]  # a clipboard escape, shown


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(4, 20), st.data())
def test_lines_fit_and_never_change(text: str, width: int, data: st.DataObject) -> None:
    wrapper, at = Wrapper(width), 0
    before: list[Row] = []
    while at < len(text):
        step = data.draw(st.integers(1, 9))
        wrapper.feed(text[at : at + step])
        at += step
        assert wrapper.lines[: len(before)] == before
        before = list(wrapper.lines)
    lines = flat(wrapper.all_lines())
    assert all(cell_width(line) <= width for line in lines)
    assert lines == flat(wrapped(text, width))
    assert not any(char in line for line in lines for char in "\x1b\x00\r\u202e")
    # Nothing is lost but blanks at the ends of lines.
    kept = "".join(lines).replace(" ", "").replace("\u3000", "")
    for hidden, shown in (("\x1b", "␛"), ("\x00", "␀"), ("\r", "␍"), ("\u202e", "<U+202E>")):
        kept = kept.replace(shown, hidden)
    assert kept == text.translate({ord(blank): None for blank in " \u3000\n\t"})


@given(TEXTS, st.integers(6, 30))
def test_a_name_is_cut_in_its_middle(text: str, width: int) -> None:
    assert cell_width(fitted(text, width)) <= width


def test_columns_need_room() -> None:
    assert pane_width(80, 2) == 38 and pane_width(120, 3) == 38
    assert pane_width(59, 2) is None and pane_width(80, 4) is None and pane_width(20, 1) == 20


def run(screen: int, texts: list[str], height: int = 5) -> list[str]:
    """All final rows of panes that stream turn by turn, checked on the way."""
    panes = Panes(screen, [[(f"{i}:\n", "")] for i in range(len(texts))])
    out: list[Row] = []
    ended: set[int] = set()
    for at in range(max(map(len, texts)) + 1):
        for index, text in enumerate(texts):
            panes.feed(index, text[at : at + 1])
            if at >= len(text) and index not in ended:
                ended.add(index)
                panes.end(index, [("end", "")])
        final, changing = panes.rows(height)
        out += final
        assert len(changing) <= height
    final, changing = panes.rows(height)
    assert not changing
    return flat(out + final)


def test_headings_have_as_many_lines_each() -> None:
    short, long = Head(0, "A", "a.gguf", "1a2b · F32", "bold"), Head(1, "B", "b" * 30, "3c4d · Q8_0", "bold")
    assert flat(pane_headings([short], 38)) == ["a.gguf   1a2b · F32\n"]
    both = ["A  a.gguf\n1a2b · F32\n", f"B  {'b' * 30}\n3c4d · Q8_0\n"]
    assert flat(pane_headings([short, long], 38)) == both
    hidden = Head(0, "A", "?", "", "bold")
    assert flat(pane_headings([hidden, hidden], 38)) == ["A  ?\n"] * 2


def test_columns_side_by_side() -> None:
    rows = run(61, ["x " * 20, "short"])
    assert rows[0].startswith("0:") and " │ 1:" in rows[0]
    assert rows[1].endswith("│ short") and rows[2].endswith("│ end")
    assert sum(row.count("x") for row in rows) == 20
    assert all(cell_width(row) <= 61 for row in rows)


def test_stacked_below_sixty_columns() -> None:
    rows = run(40, ["x " * 30, "y " * 30])
    text = "\n".join(rows)
    assert text.index("x") < text.index("1:") < text.index("y") and "│" not in text
    assert text.count("x") == text.count("y") == 30


@settings(max_examples=100, deadline=None)
@given(
    st.lists(TEXTS, min_size=2, max_size=3),
    st.lists(st.integers(20, 130), min_size=1, max_size=4),
    st.data(),
)
def test_a_resized_screen_shows_everything_once(
    answers: list[str], widths: list[int], data: st.DataObject
) -> None:
    """Each pane speaks letters of its own: the final rows hold them all, in order."""
    texts = [
        "".join(chr(0x3B1 + 9 * i + ord(c) % 9) if c.isalnum() else c for c in answer)
        for i, answer in enumerate(answers)
    ]
    panes = Panes(data.draw(st.sampled_from(widths)), [[(f"[{i}]\n", "")] for i in range(len(texts))])
    left = list(texts)
    out: list[Row] = []
    while any(left):
        pane = data.draw(st.sampled_from([i for i, text in enumerate(left) if text]))
        size = data.draw(st.integers(1, 30))
        panes.feed(pane, left[pane][:size])
        left[pane] = left[pane][size:]
        if not left[pane]:
            panes.end(pane, [("end", "")])
        if data.draw(st.booleans()):
            panes.resize(data.draw(st.sampled_from(widths)))
        final, changing = panes.rows(5)
        assert len(changing) <= 5 and all(cell_width(row) <= panes.screen for row in flat(changing + final))
        out += final
    for pane in (i for i, text in enumerate(texts) if not text):
        panes.end(pane, [])
    final, changing = panes.rows(5)
    assert not changing
    shown = "".join(flat(out + final))
    for i, text in enumerate(texts):
        own = [chr(0x3B1 + 9 * i + k) for k in range(9)]
        assert [c for c in shown if c in own] == [c for c in text if c in own]
        assert f"[{i}]" in shown


def test_a_stack_says_whose_texts_go_on() -> None:
    panes = Panes(80, [[("[A]\n", "")], [("[B]\n", "")], [("[C]\n", "")]])
    for pane, text in enumerate(("one\ntwo", "one\n", "one")):
        panes.feed(pane, text)
    panes.end(2, [])
    out = flat(panes.rows(9)[0])
    for screen in (70, 66, 50):  # a window's border is drawn: many sizes on the way
        panes.resize(screen)
        out += flat(panes.rows(9)[0])
    for pane in (0, 1):
        panes.feed(pane, " three")
        panes.end(pane, [])
    out += flat(panes.rows(9)[0])
    words = [word for row in out for word in row.replace("│", " ").split()]
    assert words == ["[A]", "[B]", "[C]", "one", "one", "one", "[A]", "two", "three", "[B]", "three"]
