"""Pages that a run or an export leaves: one file each, no script, nothing that is loaded."""
