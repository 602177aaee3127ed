"""Every error that a user can meet says what to do, or what was expected in place of a bad value."""

from __future__ import annotations

import ast

from oracles import REPOSITORY

from lorafold import errors

CLASSES = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.LorafoldError)
}


def test_every_error_has_a_cure() -> None:
    made, without = 0, []
    for top in ("lorafold", "train", "export", "serve"):
        for path in (REPOSITORY / top).rglob("*.py"):
            if any(parent.is_symlink() for parent in path.parents):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES:
                    made += 1
                    given = {word.arg for word in node.keywords}
                    if not given & {"fix", None} and "expected" not in ast.unparse(node.args[0]):
                        without.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert made > 300
    assert not without, "\n".join(without)
