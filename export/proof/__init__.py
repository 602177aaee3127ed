"""What an export is held against: tokens, tensors, logits; each answer a `check.Check`.

Checks: `tokens`, `tensors`, `logits` (by `llama`), `observed`. The model that the logits are held against:
`reference`. What is asked: `asking`, `chats`, `sample`, `kept`. Figures: `check`, `measured`.
"""
