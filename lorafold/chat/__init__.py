"""The one place where a conversation becomes tokens: `tokenizer.ChatTokenizer`."""
