"""Reading the header of a GGUF: `read.read_gguf_header`."""
