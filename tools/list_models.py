"""Writes docs/models.md: which models become GGUF, from the table of architectures.

    python tools/list_models.py > docs/models.md

A test holds the page equal to what this prints.
"""

from __future__ import annotations

from lorafold.chat.named import NAMED
from lorafold.export.arch.known import known_models

PAGE = """\
# Supported models

Made by `python tools/list_models.py` from the table in `export/arch/table.py`. `lorafold models WORD` looks
it up in a terminal.

A model is recognised by `architectures` in its config.json. `lorafold inspect MODEL` says whether yours is in
the table ("becomes a GGUF: yes, as llama"), without reading weights.

| what | which models |
|---|---|
| `lorafold train` | every causal language model that transformers loads and peft adapts |
| `lorafold export`, GGUF and adapter GGUF | the table below |
| `lorafold export --format folder` | every architecture: the folder is the base's, with merged weights |
| `lorafold export --onto BASE.gguf` | any architecture, if you have a GGUF of the base: [onto.md](onto.md) |
| `lorafold chat` | every GGUF that llama.cpp loads, every folder that transformers loads, every server |

Of a multimodal model the text part is exported, and text is what is trained; its projector is compared
with the base and handed over (`--mmproj`, [onto.md](onto.md)). Training on pictures and sound is out of
scope. So is preference training (DPO, PPO, reward models).

[coverage.md](coverage.md) holds a tiny model of each of 155 classes against llama.cpp's converter, with
PEFT's merge of an adapter on all linear layers and on stacked experts:

| adapter | compared | equal with `--onto` | equal natively | wrong |
|---|---|---|---|---|
| LoRA | 133 | 132 | 110 | 0 |
| DoRA | 132 | 131 | 104 | 0 |
| rsLoRA | 133 | 132 | 105 | 0 |

The others are refused by name: a tensor of DistilBERT's language model head is in no GGUF; natively 22
classes have no row (27 when DoRA and rsLoRA were run), and Qwen3-VL-MoE, built from scratch, has another
layout than the files that Qwen releases.

## What becomes a GGUF

{table}

An adapter GGUF changes linear layers and stacked experts; the last column names those for which llama.cpp
never asks an adapter. A change of them is refused by name: fold it in, which every row can.

llama.cpp has some things fixed for an architecture (the activation, the kind of RoPE scaling, windows). A
model that needs another thing is refused with the field of its config.json; what llama.cpp leaves out for
long texts is a note.

## Chat templates

The template is the model's own. If there is none, `--chat-template` takes a Jinja file or one of these
names:
{templates}.
[templates.md](templates.md) lists which published templates become an Ollama TEMPLATE, and which are
refused and why.
"""


def page() -> str:
    """The page."""
    rows = ["| models | class in config.json | in the GGUF | adapter GGUF changes |", "|---|---|---|---|"]
    for row in known_models():
        gguf = f"`{row.gguf}`" if " " not in row.gguf else row.gguf
        rows.append(
            f"| {row.models} | {', '.join(f'`{name}`' for name in row.classes)} | {gguf} | {row.adapter} |"
        )
    return PAGE.format(table="\n".join(rows), templates=", ".join(f"`{name}`" for name in NAMED))


if __name__ == "__main__":
    print(page(), end="")
