"""From what the user named to folders on this disk: what a folder is, and which base an adapter means."""
