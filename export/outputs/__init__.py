"""What an export may become: `output.PLANNERS` is the table of formats, and `onto` a fold onto a GGUF that
exists.

`gguf`, `folder`, `adapter` and `onto` are the formats. They use `gguf_models` (files of each type), `prompt`
(what starts them), `kept_blocks`, `merged_folder`, `stochastic` (rounding), `adapter_gguf`, `side_files`,
`tensor_list` and `surviving` (of the adapter's change).
"""
