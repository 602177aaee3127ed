"""A GGUF as it is planned and written: parts, header, rows, split, plan, writer."""
