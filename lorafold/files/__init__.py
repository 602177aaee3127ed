"""Files as they are: what their first bytes say, the form of their JSON, their seal, their names."""
