"""one or more models → chat in the terminal, comparison, report: the serving stage."""
