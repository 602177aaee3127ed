"""One module per format; `output.FORMATS` is the table."""
