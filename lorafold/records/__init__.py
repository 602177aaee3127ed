"""Files of records: what `train` learns from, `compare` asks and `export` proves with, read in one way.

`files.read_parts` reads any file type, `layouts.build_example` makes a record an example, `chats.read_chats`
the questions and chats that `compare` and `export` take.
"""
