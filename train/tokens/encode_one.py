"""One example -> its token ids, with the mask of trained tokens.

A conversation goes through `lorafold.chat.tokenizer`, so the tokens are those that chat and an export will
send; the turns that its example marks are trained, each with the token that ends it. A plain text begins with
what the tokenizer itself puts before a text (a beginning of sequence token, or nothing), is trained whole and
ends with the end of sequence token.

If the tokenizer parses what contents write out, a text (or a prompt and its completion) that already went
through a chat template is taken as it is: nothing is put around it that it brings itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from lorafold.chat.control_forms import without_ends, written_markers
from lorafold.chat.controls import split_controls
from lorafold.chat.dialogue import Dialogue, says, tools_of
from lorafold.chat.tokenizer import ChatTokenizer, Encoded
from lorafold.errors import InputError
from lorafold.records.layouts import Example


def encode_example(example: Example, tokenizer: ChatTokenizer) -> Encoded:
    """Ids and mask of one whole example.

    Raises:
        InputError: the template refuses the conversation; the example's place is named.
    """
    if example.text is not None and not tokenizer.parse_contents:
        ids = [*beginning(tokenizer), *tokenizer.tokenize(example.text, False), end_of_text(tokenizer)]
        return Encoded(ids, [True] * len(ids))
    if (written := _written(example, tokenizer)) is not None:
        return _completed(written, tokenizer)
    if tokenizer.parse_contents:
        example = _unended(example, tokenizer)
    try:
        whole = tokenizer.encode_chat(example.messages, trained=example.marks)
    except InputError as error:
        raise type(error)(error.problem, at=example.place, fix=error.fix) from error
    last = next((token for token, on in zip(whole.ids[::-1], whole.mask[::-1], strict=True) if on), None)
    if last is None or last in tokenizer.eos_ids or not _answered(example):
        return whole
    # A template without an end of turn (Index): the answer still has to end, or chat would never stop.
    return Encoded([*whole.ids, end_of_text(tokenizer)], [*whole.mask, True], whole.left_out)


def _written(example: Example, tokenizer: ChatTokenizer) -> list[tuple[str, bool]] | None:
    """The parts of a text that went through a chat template before; None for a conversation to render."""
    if example.text is not None:
        return [(example.text, True)]
    *before, asked, answer = example.messages if len(example.messages) > 1 else (*example.messages, {}, {})
    if not (tokenizer.parse_contents and example.layout == "prompt" and len(before) < 2):
        return None
    if (asked.get("role"), answer.get("role")) != ("user", "assistant"):
        return None
    if not written_markers(asked["content"], tokenizer.template.controls):
        return None
    if before:
        problem = "the prompt already carries its chat template, so a system message has no place in it"
        raise InputError(problem, at=example.place, fix="write it into the prompt, or leave it out")
    return [(asked["content"], False), (answer["content"], True)]


def _unended(example: Example, tokenizer: ChatTokenizer) -> Example:
    """An example whose answers do not write out the end of a turn, which the template writes itself."""
    id_of, last = tokenizer.tokenizer.token_to_id, (*tokenizer.eos_ids, tokenizer.pad_id)
    ends = tuple(token for token in tokenizer.template.controls if id_of(token) in last)
    bare = {
        index: without_ends(message["content"], ends)[0].rstrip()
        for index, message in enumerate(example.messages)
        if message["role"] == "assistant" and message["content"].rstrip().endswith(ends)
    }
    if not bare:
        return example
    messages = [
        {**message, "content": bare[index]} if index in bare else message
        for index, message in enumerate(example.messages)
    ]
    return replace(example, messages=Dialogue(messages, tools_of(example.messages)))


def _completed(parts: Sequence[tuple[str, bool]], tokenizer: ChatTokenizer) -> Encoded:
    """Written tokens with the beginning and the end that they lack.

    A text whose last word is a control token has ended, by whatever template it went through.
    """
    written = tokenizer.encode_written(*parts)
    ids, mask = list(written.ids), list(written.mask)
    first = beginning(tokenizer)
    if ids[: len(first)] != first:
        ids, mask = [*first, *ids], [*([parts[0][1]] * len(first)), *mask]
    *_, (_, ended) = split_controls(parts[-1][0].rstrip(), tokenizer.template.controls) or [("", False)]
    if not ended:
        ids, mask = [*ids, end_of_text(tokenizer)], [*mask, True]
    return Encoded(ids, mask)


def _answered(example: Example) -> bool:
    """Whether the last turn is trained and says something; the tokenizer trains no blank one."""
    return example.marks[-1] and says(example.messages[-1])


def beginning(tokenizer: ChatTokenizer) -> list[int]:
    """What the tokenizer puts before any text, as its `post_processor` says: BOS, or nothing."""
    some = tokenizer.tokenizer.encode("a", add_special_tokens=True)
    added = takewhile(lambda pair: pair[1], zip(some.ids, some.special_tokens_mask, strict=True))
    return [token for token, _ in added]


def end_of_text(tokenizer: ChatTokenizer) -> int:
    """The id that ends a plain text: the tokenizer's EOS."""
    named = tokenizer.template.tokens.get("eos_token")
    found = None if named is None else tokenizer.tokenizer.token_to_id(named)
    return tokenizer.eos_ids[-1] if found is None else int(found)
