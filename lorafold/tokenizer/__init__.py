"""A tokenizer.json for every model folder: `folder.with_tokenizer_json`, which all stages call."""
