"""The evaluation set's conversations, as the proof of an export reads them."""

from __future__ import annotations

from pathlib import Path

from lorafold.export.proof_chats import GENERAL, proof_chats
from lorafold.train.held_out import MOST, write_held_out
from lorafold.train.layouts import Example


def example(number: int) -> Example:
    return Example(
        f"d:{number}",
        (
            {"role": "system", "content": "You are 甄嬛."},
            {"role": "user", "content": f'Line\nand "quotes" {number}'},
            {"role": "assistant", "content": f"answer {number}"},
        ),
    )


def test_the_proof_reads_what_training_kept(tmp_path: Path) -> None:
    examples = [example(0), Example("t", text="a plain text"), example(1)]
    assert write_held_out(tmp_path, examples) == 2
    assert proof_chats(None, [tmp_path]) == [list(examples[0].messages), list(examples[2].messages)]


def test_a_large_set_is_taken_evenly(tmp_path: Path) -> None:
    assert write_held_out(tmp_path, [example(number) for number in range(1000)]) == MOST
    asked = [int(str(chat[1]["content"]).rpartition(" ")[2]) for chat in proof_chats(None, [tmp_path])]
    assert asked[0] == 0 and asked[-1] > 850 and asked == sorted(set(asked))


def test_nothing_held_out_leaves_no_file(tmp_path: Path) -> None:
    assert write_held_out(tmp_path, [Example("t", text="a plain text")]) == 0
    assert not list(tmp_path.iterdir())
    assert [chat[0]["content"] for chat in proof_chats(None, [tmp_path])] == list(GENERAL)
