"""Chat templates by name, for models that carry none: base models, and chat models older than the convention.

Each is written here from the published prompt format of its family; `--chat-template NAME` chooses one.
The source is what gets saved with the adapter, into the merged folder and the GGUF, so that nothing depends
on this table later. `tokens` are the family's special tokens, used only if the model's own tokenizer names
none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NamedTemplate:
    """A template of ours and the special tokens its family has.

    Args:
        source: the Jinja template.
        tokens: special tokens by their transformers name ("bos_token"), for tokenizers that name none.
        about: the format's origin, for the documentation.
    """

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    about: str = ""


_CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_LLAMA_2 = """\
{%- set system = '' %}
{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""

_DEEPSEEK_LLM = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- 'User: ' + message['content'] + '\\n\\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- 'Assistant: ' + message['content'] + eos_token }}
    {%- else %}
        {{- message['content'] + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""

_INDEX = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<unk>system' + messages[0]['content'] }}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}
        {{- 'reserved_0user' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- 'reserved_1assistant' + message['content'] }}
    {%- else %}
        {{- raise_exception('only a first message can be a system message') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'reserved_1assistant' }}
{%- endif %}
"""

_ALPACA = """\
{%- if messages[0]['role'] == 'system' %}
    {{- messages[0]['content'] + '\\n\\n' }}
    {%- set turns = messages[1:] %}
{%- else %}
    {{- 'Below is an instruction that describes a task. ' }}
    {{- 'Write a response that appropriately completes the request.\\n\\n' }}
    {%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}
        {{- '### Instruction:\\n' + message['content'] + '\\n\\n' }}
    {%- else %}
        {{- '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\\n' }}
{%- endif %}
"""

_VICUNA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- messages[0]['content'] + ' ' }}
    {%- set turns = messages[1:] %}
{%- else %}
    {{- 'A chat between a curious user and an artificial intelligence assistant. ' }}
    {{- "The assistant gives helpful, detailed, and polite answers to the user's questions. " }}
    {%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}
        {{- 'USER: ' + message['content'] + ' ' }}
    {%- else %}
        {{- 'ASSISTANT: ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'ASSISTANT:' }}
{%- endif %}
"""

_ZEPHYR = """\
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
"""

_GEMMA = """\
{{- bos_token }}
{%- set system = '' %}
{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- for message in turns %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + (system if loop.first else '') + message['content'] | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""

_MISTRAL = """\
{{- bos_token }}
{%- set system = '' %}
{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

_SENTENCE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

NAMED: Mapping[str, NamedTemplate] = {
    "chatml": NamedTemplate(
        _CHATML, {"eos_token": "<|im_end|>"}, "OpenAI's ChatML; Qwen, Yi, SmolLM and others"
    ),
    "llama-2": NamedTemplate(_LLAMA_2, _SENTENCE, "Llama 2 Chat"),
    "deepseek-llm": NamedTemplate(
        _DEEPSEEK_LLM,
        {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
        "DeepSeek LLM Chat and DeepSeek-V2 Chat",
    ),
    "index": NamedTemplate(_INDEX, _SENTENCE, "Index-1.9B-Chat"),
    "alpaca": NamedTemplate(_ALPACA, _SENTENCE, "Stanford Alpaca, continued over several turns"),
    "vicuna": NamedTemplate(_VICUNA, _SENTENCE, "Vicuna 1.1 and later"),
    "zephyr": NamedTemplate(_ZEPHYR, _SENTENCE, "Zephyr 7B, TinyLlama Chat"),
    "gemma": NamedTemplate(_GEMMA, {"bos_token": "<bos>", "eos_token": "<eos>"}, "Gemma 1 to 3"),
    "mistral": NamedTemplate(_MISTRAL, _SENTENCE, "Mistral 7B Instruct v0.1 to v0.3"),
}
