"""Single files of a model hub: which one is meant, and its parts, read where they lie."""
