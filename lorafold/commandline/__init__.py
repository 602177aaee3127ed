"""The words of the command line: groups of flags, recipes, and the hint for a word that is not known."""
