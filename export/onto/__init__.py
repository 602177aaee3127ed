"""A fold onto a GGUF that exists: where its rows come from is measured, not looked up in a table of names.

Read `find` first. `numbers` and `index` make fingerprints of the base's rows, `match`, `nearest`,
`shuffled`, `scaled` and `ties` find a row's source, `lines`, `places` and `entries` keep what was found,
`model` and `source` read through it.
"""
