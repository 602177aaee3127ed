"""The program from Python: stages that are called, text for paths and lists, results that show themselves."""
