# ruff: noqa: E501 (templates keep their own line breaks)
"""Chat templates in the manner of published model families, written for these tests from their prompt formats.

`EXPRESSIBLE` are to be derived and proven; `REFUSED` do something that an Ollama TEMPLATE cannot do, with a
word of the reason. Special tokens are `<s>` and `</s>` everywhere, so that each exercises BOS handling.
"""

from __future__ import annotations

_TURNS = """{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns!') }}{% endif %}"""

EXPRESSIBLE: dict[str, str] = {
    "llama-2 with the system folded, all stripped": """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% for message in loop_messages %}"""
    + _TURNS
    + """\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "mistral 0.1: refuses system": """\
{{ bos_token }}{% for message in messages %}"""
    + _TURNS
    + """\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}""",
    "mistral 0.3: system before the last user": """\
{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}
{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}""",
    "zephyr, prompt inside the loop": """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "vicuna": """\
{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content|trim + '\\n\\n' }}\
{% set messages = messages[1:] %}{% else %}{{ 'A chat.\\n\\n' }}{% endif %}\
{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content|trim + '\\n' }}\
{% else %}{{ 'ASSISTANT: ' + m.content|trim + eos_token + '\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}""",
    "chatml without prompt flag": """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "chatml with a default system inside the loop": """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content']}}\
{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>' + '\n'}}{% endif %}{% endfor %}\
{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "internlm2": """\
{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] }}\
{{ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "gemma 3: system before the first user, parts allowed": """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}""",
    "phi-4": """\
{% for message in messages %}{% if (message['role'] == 'system') %}\
{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}\
{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}\
{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}""",
    "deepseek r1: thoughts in the history dropped": """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(system_prompt='', is_first_sp=true) -%}
{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}
{%- set ns.system_prompt = ns.system_prompt + message['content'] %}{%- set ns.is_first_sp = false %}
{%- else %}{%- set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}
{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}
{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}
{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}""",
    "deepseek v2.5": """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}\
{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}\
{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}\
{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}""",
    "deepseek coder": """\
{{ bos_token }}{%- set ns = namespace(found=false) -%}{%- for message in messages -%}\
{%- if message['role'] == 'system' -%}{%- set ns.found = true -%}{%- endif -%}{%- endfor -%}\
{%- if not ns.found -%}{{'You are an AI programming assistant.\\n'}}{%- endif %}{%- for message in messages %}\
{%- if message['role'] == 'system' %}{{ message['content'] }}{%- else %}{%- if message['role'] == 'user' %}\
{{'### Instruction:\\n' + message['content'] + '\\n'}}{%- else %}\
{{'### Response:\\n' + message['content'] + '\\n<|EOT|>\\n'}}{%- endif %}{%- endif %}{%- endfor %}\
{% if add_generation_prompt %}{{'### Response:'}}{% endif %}""",
    "glm-4": """\
[gMASK]<sop>{% for item in messages %}{% if item['role'] == 'system' %}<|system|>
{{ item['content'] }}{% elif item['role'] == 'user' %}<|user|>
{{ item['content'] }}{% elif item['role'] == 'assistant' %}<|assistant|>
{{ item['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}""",
    "command-r": """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% elif false == true %}{% set loop_messages = messages %}\
{% set system_message = 'You are Command-R.' %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% if system_message != false %}\
{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}\
{% for message in loop_messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}\
{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}\
{% elif message['role'] == 'assistant' %}\
{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'  + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}""",
    "smollm2: default system": """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",
    "olmo 2": """\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}\
{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}\
{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}\
{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}\
{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}\
{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}""",
    "granite 3 with a date": """\
{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}
{%- set loop_messages = messages[1:] %}{%- else %}
{%- set system_message = "Knowledge Cutoff Date: April 2024.
Today's Date: " + strftime_now('%B %d, %Y') + ".
You are Granite, developed by IBM." %}
{%- set loop_messages = messages %}{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>
' }}
{%- for message in loop_messages %}
{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>
' }}
{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant' }}{{- '<|end_of_role|>' }}{%- endif %}
{%- endfor %}""",
    "falcon": """\
{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}\
{% if message['role'] == 'system' %}{{ message['content'] + '\n' }}{% elif message['role'] == 'user' %}\
{{ 'User: ' + message['content'].strip() }}{% else %}{{ 'Falcon: ' + message['content'].strip() }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '\n' + 'Falcon:' }}{% endif %}""",
    "openchat": """\
{{ bos_token }}{% for message in messages %}{{ 'GPT4 Correct ' + message['role'].title() + ': ' }}\
{{ message['content'] + '<|end_of_turn|>'}}{% endfor %}\
{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}""",
    "orion": """\
{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{% if message['role'] == 'user' %}\
{{ 'Human: ' + message['content'] + '\n\nAssistant: ' + eos_token }}{% elif message['role'] == 'assistant' %}\
{{ message['content'] + eos_token }}{% endif %}{% endfor %}""",
    "solar": """\
{% for message in messages %}{% if message['role'] == 'system' %}{% if message['content'] %}\
{{'### System:\n' + message['content'] + '\n\n'}}{% endif %}{% elif message['role'] == 'user' %}\
{{'### User:\n' + message['content'] + '\n\n'}}{% elif message['role'] == 'assistant' %}\
{{'### Assistant:\n'  + message['content']}}{% endif %}{% if loop.last and add_generation_prompt %}\
{{ '### Assistant:\n' }}{% endif %}{% endfor %}""",
    "llama 3": """\
{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}\
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    "llama 3.1 with a date": """\
{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}
{%- set messages = messages[1:] %}{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: " + date_string }}
{{- "\n\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}""",
    "minicpm": """\
{% for message in messages %}{% if message['role'] == 'user' %}{{'<用户>' + message['content'].strip() + '<AI>'}}\
{% else %}{{message['content'].strip()}}{% endif %}{% endfor %}""",
    "baichuan": """\
{% for message in messages %}{% if message['role'] == 'user' %}{{ '<reserved_106>' + message['content'] }}\
{% elif message['role'] == 'assistant' %}{{ '<reserved_107>' + message['content'] }}\
{% else %}{{ message['content'] }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<reserved_107>' }}{% endif %}""",
    "exaone 3: empty default system": """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\n' }}\
{% endif %}{{ '[|' + message['role'] + '|]' + message['content'] }}{% if message['role'] == 'user' %}{{ '\n' }}\
{% else %}{{ '[|endofturn|]\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}""",
    "nemotron mini": """\
{{'<extra_id_0>System'}}{% for message in messages %}{% if message['role'] == 'system' %}\
{{'\n' + message['content'].strip()}}{% endif %}{% endfor %}{{'\n'}}{% for message in messages %}\
{% if message['role'] == 'user' %}{{ '\n<extra_id_1>User\n' + message['content'].strip() }}\
{% elif message['role'] == 'assistant' %}{{ '\n<extra_id_1>Assistant\n' + message['content'].strip() }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{'\n<extra_id_1>Assistant\n'}}{% endif %}""",
    "dbrx: first and later turns differ": """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
{% set system_message = 'You are DBRX.' %}{% endif %}{% for message in loop_messages %}{% if loop.index0 == 0 %}\
{{ '<|im_start|>system\n' + system_message | trim + '<|im_end|>\n' }}{{ '<|im_start|>' + message['role'] + '\n' }}\
{{ message['content'] + '<|im_end|>' }}{% else %}{{ '\n' + '<|im_start|>' + message['role'] + '\n' }}\
{{ message['content'] + '<|im_end|>' }}{% endif %}{% if (add_generation_prompt == true and loop.last) %}\
{{ '\n' + '<|im_start|>' + 'assistant' + '\n' }}{% endif %}{% endfor %}""",
    "gpt-oss: system with date, developer message, channels": """\
<|start|>system<|message|>You are ChatGPT.
Current date: {{ strftime_now("%Y-%m-%d") }}

Reasoning: {{ reasoning_effort|default("medium") }}<|end|>
{%- if messages[0].role == "system" %}{% set dev = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set dev = "" %}{% set rest = messages %}{%- endif %}
{%- if dev %}{{- "<|start|>developer<|message|># Instructions\\n\\n" + dev + "\\n\\n<|end|>" }}{%- endif %}
{%- for message in rest %}{%- if message.role == "assistant" %}
{%- if loop.last and not add_generation_prompt %}
{{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
{%- else %}{{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}{%- endif %}
{%- else %}{{- "<|start|>user<|message|>" + message.content + "<|end|>" }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start|>assistant" }}{%- endif %}""",
    "content parts only": """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}{% for content in message['content'] %}\
{% if content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}""",
    "generation tags and a macro": """\
{%- macro turn(role, text) -%}<|{{ role }}|>{{ text }}{%- endmacro -%}
{%- for message in messages -%}{%- if message.role == 'assistant' -%}<|assistant|>{% generation %}\
{{ message.content }}<|end|>{% endgeneration %}{%- else -%}{{ turn(message.role, message.content) }}<|end|>\
{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}""",
    "literals that Go would misread": """\
{% for m in messages %}{{ '{{ ' + m.role + ' }} "' + '"' * 3 + '\\n' + m.content + ' {' }}{% endfor %}\
{% if add_generation_prompt %}{{ '{{{ \\u3000"' }}{% endif %}""",
    "system at the very end": """\
{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}\
{% else %}{{ '<' + m.role + '>' + m.content + '</turn>' }}{% endif %}{% endfor %}\
{% if ns.system %}{{ '<note>' + ns.system + '</note>' }}{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}""",
    "second turn special": """\
{% for m in messages %}{% if m.role == 'user' %}{{ '<u>' }}{% if loop.index0 == 2 %}{{ '[again]' }}{% endif %}\
{{ m.content + '</u>' }}{% elif m.role == 'assistant' %}{{ '<a>' + m.content + '</a>' }}{% endif %}{% endfor %}<a>""",
    "last answer and last turns special": """\
{% for m in messages %}{% if m.role == 'user' %}{{ '<u' + ('!' if loop.revindex == 3 else '') + '>' + m.content }}\
{% elif m.role == 'assistant' %}{% if loop.revindex0 == 1 %}{{ '<think></think>' + m.content | trim }}{% else %}\
{{ m.content }}{% endif %}</s>{% endif %}{% endfor %}<a>""",
    "only newlines trimmed": """\
{% for m in messages %}{{ '<' + m.role + '>' + m.content.lstrip('\\n').rstrip() + '</>' }}{% endfor %}<assistant>""",
    "thinking switch": """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}""",
    "thinking tag in the system message": """\
{% if enable_thinking is defined and enable_thinking %}{% set think = 'detailed thinking on' %}{% else %}\
{% set think = 'detailed thinking off' %}{% endif %}{{ '<sys>' + think }}{% for m in messages %}\
{% if m.role == 'system' %}{{ '\\n' + m.content }}{% endif %}{% endfor %}{{ '</sys>' }}{% for m in messages %}\
{% if m.role != 'system' %}{{ '<' + m.role + '>' + m.content | trim + '</>' }}{% endif %}{% endfor %}<assistant>""",
}

# name -> (template, a word of the reason)
REFUSED: dict[str, tuple[str, str]] = {
    "counts the rounds": (
        """{% for m in messages %}{% if m.role == 'user' %}{{ '[Round ' ~ (loop.index0 // 2 + 1) ~ ']\\n' + m.content }}\
{% else %}{{ m.content }}{% endif %}{% endfor %}""",
        "count",
    ),
    "content as JSON": ("{% for m in messages %}{{ m.content | tojson }}<e>{% endfor %}", "changes the text"),
    "upper case": ("{% for m in messages %}{{ m.content | upper }}<e>{% endfor %}", "changes"),
    "drops all but the last two": (
        "{% for m in messages[-2:] %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        "drops",
    ),
    "repeats the system text in every turn": (
        """{% set s = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}\
{% if m.role != 'system' %}<{{ m.role }}>{{ s }}{{ m.content }}{% endif %}{% endfor %}""",
        "repeats the system",
    ),
    "repeats the question": (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}Q: {{ messages[-1].content }}",
        "repeats",
    ),
    "newest first": ("{% for m in messages | reverse %}<{{ m.role }}>{{ m.content }}{% endfor %}", "order"),
    "weekday": (
        "{{ strftime_now('%A') }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        "date",
    ),
    "HTML escaped": ("{% for m in messages %}<{{ m.role }}>{{ m.content | e }}{% endfor %}", "changes"),
    "collapses blank lines": (
        "{% for m in messages %}<{{ m.role }}>{{ m.content | replace('\\n\\n', '\\n') }}{% endfor %}",
        "changes",
    ),
    "one user turn only": (
        "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}<u>{{ messages[-1].content }}<a>",
        "refuses a conversation",
    ),
    "length of the text": (
        "{% for m in messages %}<{{ m.role }} {{ m.content | length }}>{{ m.content }}{% endfor %}",
        "changes the text",
    ),
    "fails on chats": ("{{ messages.nothing.here }}", "single user message"),
}
