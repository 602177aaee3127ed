"""One example → its token ids, with the mask of trained tokens.

A conversation goes through `lorafold.chat.tokenizer`, so the tokens are those that chat and an export will
send; every assistant turn is trained with the token that ends it. A plain text begins with what the tokenizer
itself puts before a text (a beginning of sequence token, or nothing), is trained whole and ends with the end
of sequence token.
"""

from __future__ import annotations

from itertools import takewhile

from lorafold.chat.tokenizer import ChatTokenizer, Encoded
from lorafold.errors import InputError
from lorafold.train.data.layouts import Example


def encode_example(example: Example, tokenizer: ChatTokenizer) -> Encoded:
    """Ids and mask of one whole example.

    Raises:
        InputError: the template refuses the conversation; the example's place is named.
    """
    if example.text is not None:
        ids = [*beginning(tokenizer), *tokenizer.tokenize(example.text, False), end_of_text(tokenizer)]
        return Encoded(ids, [True] * len(ids))
    try:
        whole = tokenizer.encode_chat(list(example.messages))
    except InputError as error:
        raise type(error)(error.problem, at=example.place, fix=error.fix) from error
    last = next((token for token, on in zip(whole.ids[::-1], whole.mask[::-1], strict=True) if on), None)
    if last is None or last in tokenizer.eos_ids or not _answered(example):
        return whole
    # A template without an end of turn (Index): the answer still has to end, or chat would never stop.
    return Encoded([*whole.ids, end_of_text(tokenizer)], [*whole.mask, True])


def _answered(example: Example) -> bool:
    """Whether the last turn is an answer with something to train; the tokenizer trains no blank one."""
    turn = example.messages[-1]
    return turn["role"] == "assistant" and bool(turn["content"].strip())


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
