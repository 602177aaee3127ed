"""The prompt beside the weights: planned from a template, written as Modelfiles, asked of running servers."""
