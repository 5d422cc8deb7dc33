"""Tasks: what a kind of problem is; the registry of sources."""
