"""How each library lays out packed weights: a module a layout, whose `plan` lists the packed tensors.

`integers` is what GPTQ, AWQ and compressed-tensors share; `fp4` is a part of compressed-tensors.
"""
