"""What an export may become: `output.PLANNERS` is the table of formats, and `onto` a fold onto a GGUF that
exists.

`gguf`, `folder`, `adapter` and `onto` are the formats. They use `gguf_models` and `modelfiles` (files of
each type, and what starts them), `merged_folder`, `stochastic` (rounding), `adapter_gguf`, `side_files`,
`tensor_list`, `surviving` (of the adapter's change), and `observing` (a running server).
"""
