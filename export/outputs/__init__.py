"""One module per format; `output.PLANNERS` is the table."""
