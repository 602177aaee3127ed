"""Bases whose weights are packed in 4 or 8 bits, read as float32 rows like any other base, without torch.

`formats.FORMATS` is the table of formats, whose modules lie in `layouts/`; `source.open_base` opens a base
of any kind.
"""
