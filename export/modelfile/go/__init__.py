"""The subset of Go's text/template that we write, parsed and executed."""
