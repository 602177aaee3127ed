"""Turns and fields as programs and people spell them -> one spelling; questions with their answers parted.

ShareGPT writes {from, value}, OpenAI {role, content}, Gemini {role, parts}; mixtures of them are in use, and
roles in capitals. Anthropic and Mistral put what was thought among the parts of a content. Firefly, XTuner
and ms-swift's `history` write a question with its answer in one object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Words for the roles that chat templates know; lower case. Roles of tools are those of `turns.ROLES`.
ROLE_WORDS = {
    "developer": "system",
    "system_prompt": "system",
    "prompter": "user",
    "customer": "user",
    "ai": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
}
# Headers of tables in other languages, lower case -> the field.
FIELD_WORDS = {
    word: field
    for field, words in {
        "question": "问题 問題 提问 提問 問 问 質問 질문 pregunta pergunta frage domanda вопрос vraag soru",
        "answer": "回答 答案 答 答复 答覆 回复 回覆 答え 応答 답변 대답 "
        "respuesta resposta réponse reponse antwort risposta ответ antwoord cevap",
        "instruction": "指令 指示 지시 "
        "instrucción instruccion instrução instrucao anweisung istruzione инструкция",
        "input": "输入 輸入 入力 입력 entrada entrée entree eingabe ввод",
        "output": "输出 輸出 出力 출력 salida saída saida sortie ausgabe вывод",
        "prompt": "提示 提示词 提示詞 プロンプト 프롬프트",
        "system": "系统 系統 系统提示 系统提示词 システム",
        "text": "文本 テキスト 텍스트 texto texte testo текст",
    }.items()
    for word in words.split()
}
_CONTENTS = ("content", "value", "text", "parts")  # where a turn keeps what it says
_THOUGHTS = ("thinking", "reasoning")  # types of parts that are thoughts, and their fields
# A question and its answer in one object, which may begin with a system message.
_PAIRS = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("human", "bot"),
    ("query", "response"),
    ("question", "answer"),
    ("prompt", "response"),
    ("input", "output"),
    ("instruction", "output"),
)


def respelled(turns: Iterable[Any], known: Mapping[str, str]) -> Iterator[Any]:
    """Turns with the roles and fields that `turns` knows; what is no turn stays as it is.

    Args:
        turns: as they were read.
        known: the roles that need no other word.
    """
    for turn in turns:
        if not isinstance(turn, Mapping):
            yield turn
        elif "role" not in turn and "from" not in turn and (pair := _pair(turn)):
            yield from _parted(turn, *pair)
        else:
            yield _renamed(turn, known)


def _pair(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if all(name in turn for name in pair)), None)


def _parted(turn: Mapping[str, Any], question: str, answer: str) -> Iterator[dict[str, Any]]:
    """The turns of a question with its answer; marks and reasoning beside them are the answer's."""
    if turn.get("system"):
        yield {"role": "system", "content": turn["system"]}
    yield {"role": "user", "content": turn[question]}
    rest = {key: value for key, value in turn.items() if key not in (question, answer, "system")}
    yield {"role": "assistant", "content": turn[answer], **rest}


def _renamed(turn: Mapping[str, Any], known: Mapping[str, str]) -> Mapping[str, Any]:
    role, content = ("from", "value") if "from" in turn else ("role", "content")
    names: dict[Any, Any] = {}
    if content not in turn and (other := next((name for name in _CONTENTS if name in turn), "")):
        names[other] = content
    found = {names.get(key, key): value for key, value in turn.items()}
    if isinstance(said := found.get(role), str) and said not in known:
        word = said.strip().lower()
        word = ROLE_WORDS.get(word, word)
        found[role] = word if word in known else said
    return _thoughts_apart(found, content) if isinstance(found.get(content), list | tuple) else found


def _thoughts_apart(turn: dict[Any, Any], content: str) -> dict[Any, Any]:
    """A turn with the thoughts among its parts in a field of their own."""
    parts = turn[content]
    thoughts = [part for part in parts if isinstance(part, Mapping) and part.get("type") in _THOUGHTS]
    if not thoughts or "reasoning_content" in turn:
        return turn
    texts = "".join(
        text for part in thoughts for text in _texts(part.get(str(part["type"]), part.get("text")))
    )
    return {**turn, content: [part for part in parts if part not in thoughts], "reasoning_content": texts}


def _texts(thought: Any) -> Iterator[str]:
    """The texts of a thought: one, or parts of one."""
    if isinstance(thought, str):
        yield thought
    elif isinstance(thought, list | tuple):
        yield from (str(part["text"]) for part in thought if isinstance(part, Mapping) and part.get("text"))
