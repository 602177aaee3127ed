"""The model that an export is held against: base + adapter, the base alone, and both rounded as a file is.

`answers` asks it, layer by layer (`layers`, on a model without weights, `blank`) or as a `whole`; `rounding`
is what a file's types cost.
"""
