"""A tokenizer as `tokenizer.ggml.*`: `vocab.read_vocab`."""
