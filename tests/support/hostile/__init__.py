"""Files of strangers for every parser: what reads them, how they are changed, what once broke."""
