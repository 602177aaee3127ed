"""Is what a chat will send the beginning of what was trained? The thinking switch of a template, settled.

Templates of reasoning models end the prompt with the head of the model's thoughts, and leave it out if an
answer without thoughts stands in the conversation (GLM-4.7: `<think>` against `</think>`). Trained on such
examples, the tuned model would be asked with a prompt that it never saw. So if the prompt is not the
beginning of the conversation, the switch is set for good in the template's source; that template is trained
with and saved with the adapter, so that export, Ollama and chat follow.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from lorafold.chat.tokenizer import ChatTemplate, ChatTokenizer, Message
from lorafold.errors import LorafoldError
from lorafold.records.layouts import Example

_TRIED = 20  # conversations looked at; those of a data set are alike


def settle_thinking(
    tokenizer: ChatTokenizer, examples: Sequence[Example]
) -> tuple[ChatTokenizer, tuple[str, ...]]:
    """Choose the template's thinking switch by the examples.

    Args:
        tokenizer: with the template as it came.
        examples: of the training data.

    Returns:
        The tokenizer, with the switch set if that is needed, and what the user should know about it.
    """
    chats = [example.messages for example in examples[:_TRIED] if _answered(example)]
    template = tokenizer.template
    if not chats or _continues(template, chats):
        return tokenizer, ()
    for value in (False, True):
        fixed = template.fixed(enable_thinking=value)
        if _continues(fixed, chats):
            settled = copy.copy(tokenizer)
            settled.template = fixed
            word = "on" if value else "off"
            note = (
                f"thinking is switched {word} in the adapter's template: only so its prompt fits the examples"
            )
            return settled, (note,)
    note = "the template's prompt does not end where the answers begin: a chat will prompt in another way"
    return tokenizer, (f"{note}; give another --chat-template",)


def _answered(example: Example) -> bool:
    return len(example.messages) > 1 and example.messages[-1]["role"] == "assistant"


def _continues(template: ChatTemplate, chats: Sequence[Sequence[Message]]) -> bool:
    """Whether every conversation begins with the prompt that asks for its last answer."""
    try:
        prompts = template.render_all([chat[:-1] for chat in chats], add_generation_prompt=True)
        wholes = template.render_all(chats)
    except LorafoldError:  # what is wrong with it is said when it is used
        return True
    pairs = zip(prompts, wholes, strict=True)
    return all(
        whole.startswith(prompt)
        for prompt, whole in pairs
        if isinstance(prompt, str) and isinstance(whole, str)
    )
