"""What is derived from a chat template, what is refused and why, and what a failed proof shows."""

from __future__ import annotations

import pytest
from classic_templates import EXPRESSIBLE, REFUSED
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import shared

from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import InputError, UnsafeInputError
from lorafold.export.modelfile.chat_format import ChatFormat, derive
from lorafold.export.modelfile.go.evaluate import evaluate
from lorafold.export.modelfile.pieces import CONDITIONS, Choice, decide
from lorafold.export.modelfile.probe import SYSTEM, Chat
from lorafold.export.modelfile.proof import CLOCKS, ollama_data, prove, random_chats
from lorafold.export.modelfile.template import to_go

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def _template(source: str, name: str = "t") -> ChatTemplate:
    return ChatTemplate(source, TOKENS, frozenset(TOKENS.values()), name)


def test_chatml_by_hand() -> None:
    form = derive(_template(EXPRESSIBLE["smollm2: default system"]))
    default = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    none = Choice((), {(): ("none", "none")})
    assert form == ChatFormat(
        start=Choice(("system",), {(False,): default, (True,): f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"}),
        user_prefix=Choice((), {(): "<|im_start|>user\n"}),
        user_trim=none,
        user_suffix="<|im_end|>\n",
        assistant_prefix=Choice((), {(): "<|im_start|>assistant\n"}),
        assistant_trim=none,
        assistant_suffix="<|im_end|>\n",
        generation=Choice((), {(): "<|im_start|>assistant\n"}),
        system_trim=("none", "none"),
        system="honoured",
        bos=None,
        variants=form.variants,
    )
    source = to_go(form)
    chat = Chat("S", ("a", "b", "c"))
    assert evaluate(source, ollama_data(chat, form.variants[0])) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("name", "system", "bos"),
    [
        ("mistral 0.1: refuses system", "folded", "<s>"),
        ("orion", "ignored", "<s>"),
        ("llama-2 with the system folded, all stripped", "honoured", "<s>"),
        ("glm-4", "honoured", None),
        ("openchat", "honoured", "<s>"),
    ],
)
def test_system_messages_and_bos(name: str, system: str, bos: str | None) -> None:
    form = derive(_template(EXPRESSIBLE[name]))
    assert (form.system, form.bos) == (system, bos)
    kept = derive(_template(EXPRESSIBLE[name]), engine_bos=False)
    assert kept.bos is None
    written = evaluate(to_go(kept), ollama_data(Chat(None, ("Hi",)), kept.variants[0]))
    assert written.startswith("<s>") == (bos is not None)


def test_conditions_are_the_smallest() -> None:
    forms = {
        name: derive(_template(EXPRESSIBLE[name])) for name in ("second turn special", "thinking switch")
    }
    assert forms["second turn special"].user_prefix.conditions == ("system", "second")
    assert forms["thinking switch"].generation.conditions == ("think_set", "think")
    assert derive(_template(EXPRESSIBLE["thinking switch"]), thinking=False).generation.conditions == ()
    off = to_go(derive(_template(EXPRESSIBLE["thinking switch"]), thinking=False))
    assert "<think>\n\n</think>" in off and "IsThinkSet" not in off
    last = derive(_template(EXPRESSIBLE["mistral 0.3: system before the last user"])).user_prefix
    assert set(last.conditions) == {"system", "last"}


_keys = st.tuples(*[st.booleans()] * len(CONDITIONS))


@settings(max_examples=100, deadline=None)
@given(st.sets(st.sampled_from(CONDITIONS), max_size=3), st.lists(_keys, min_size=1, max_size=40))
def test_decide_finds_a_subset_that_decides(names: set[str], keys: list[tuple[bool, ...]]) -> None:
    """A value made of some conditions is decided, by no more of them, and the table gives it back."""
    places = [CONDITIONS.index(name) for name in names]
    rows = [(key, str([key[at] for at in sorted(places)])) for key in keys]
    choice = decide(rows)
    assert choice is not None and len(choice.conditions) <= len(names)
    for key, value in rows:
        assert choice.table[tuple(key[CONDITIONS.index(name)] for name in choice.conditions)] == value
    assert decide([(keys[0], "a"), (keys[0], "b")]) is None


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_expressed_is_refused_with_its_reason(name: str) -> None:
    source, reason = REFUSED[name]
    with pytest.raises(InputError, match="cannot be written as an Ollama TEMPLATE") as caught:
        derive(_template(source, name))
    assert reason in caught.value.problem
    assert caught.value.exit_code == 3 and "--allow-embedded-jinja" in str(caught.value)


def test_a_bomb_is_not_probed() -> None:
    with pytest.raises(UnsafeInputError, match="was stopped"):
        derive(_template("{{ 'a' * 10**10 }}"))


def test_a_failed_proof_shows_the_smallest_counterexample() -> None:
    template = _template(EXPRESSIBLE["llama 3"])
    form = derive(template)
    source = to_go(form)
    wrong = source.replace('{{ template "trim-space-space" .Content }}', "{{ .Content }}")
    assert wrong != source and prove(template, source, form).passed
    found = prove(template, wrong, form).counterexample
    assert found is not None and found.chat.system is None
    assert len(found.chat.turns) == 1 and len(found.chat.turns[0]) <= 25, found.chat
    assert "the chat template writes" in str(found)
    broken = prove(template, source + "{{", form).counterexample
    assert broken is not None and broken.go.startswith("error:") and broken.chat == Chat(None, ("x",))


def test_a_content_that_the_probes_did_not_foresee_is_caught() -> None:
    """A template that looks for a word of its own: probing does not know it, the proof's texts hold it."""
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content | replace('the answer', '42') }}</>{% endfor %}"
    )
    template = _template(source)
    form = derive(template)
    proof = prove(template, to_go(form), form)
    assert not proof.passed and proof.counterexample is not None
    assert "the answer" in "".join(proof.counterexample.chat.turns) + str(proof.counterexample.chat.system)


@pytest.mark.parametrize(
    "form", ["%Y-%m-%d", "%d %b %Y", "%B %d, %Y", "%-d.%-m.%y", "%Y-%m-%d, %B", "100%% on %d/%m/%Y"]
)
def test_dates_under_every_month(form: str) -> None:
    body = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    template = _template("{{ strftime_now('" + form + "') }} " + body)
    proof = prove(template, to_go(derived := derive(template)), derived, conversations=120)
    assert proof.passed and proof.clocks == len(CLOCKS) == 12, proof.counterexample


def test_a_default_system_is_proven_too() -> None:
    template = _template(EXPRESSIBLE["llama 3"])
    form = derive(template)
    system = 'Sei "nett"\u3000{{ .System }}\n👩\u200d💻 """'
    source = to_go(form, system)
    assert prove(template, source, form, default_system=system, conversations=60).passed
    assert not prove(template, source, form, default_system=system + "!", conversations=60).passed
    assert not prove(template, to_go(form), form, default_system=system, conversations=60).passed


def test_a_history_that_begins_with_the_assistant_keeps_the_start() -> None:
    """Ollama may cut a long history there; nothing of the prompt's start may be lost."""
    form = derive(_template(EXPRESSIBLE["openchat"]))
    source = to_go(form)
    data = ollama_data(Chat("S", ("b", "c", "d")), form.variants[0])
    data["Messages"] = [row for row in data["Messages"] if row["Content"] != "b"]
    assert evaluate(source, data) == (
        "GPT4 Correct System: S<|end_of_turn|>GPT4 Correct Assistant: c<|end_of_turn|>"
        "GPT4 Correct User: d<|end_of_turn|>GPT4 Correct Assistant:"
    )


def test_a_trailing_answer_is_left_open() -> None:
    """So that a model goes on with it: neither end of turn nor generation prompt follows."""
    source = to_go(derive(_template(EXPRESSIBLE["chatml without prompt flag"])))
    data = ollama_data(Chat(None, ("a", "b")), derive(_template(EXPRESSIBLE["internlm2"])).variants[0])
    assert evaluate(source, data).endswith("<|im_start|>assistant\nb")


def test_every_shared_template_is_derived() -> None:
    names = sorted(shared("templates").glob("*.jinja"))
    assert len(names) == 37
    for path in names[::9]:
        form = derive(_template(path.read_text(encoding="utf-8"), path.name))
        assert form.system in ("honoured", "folded"), path.name


def test_random_chats_are_what_the_contract_says() -> None:
    chats = list(random_chats(200))
    assert {len(chat.turns) // 2 + 1 for chat in chats} == set(range(1, 9))
    assert all(len(chat.turns) % 2 == 1 and all(text.strip() for text in chat.turns) for chat in chats)
    assert {chat.system is None for chat in chats} == {True, False}
    assert any(text != text.strip() for chat in chats for text in chat.turns)
