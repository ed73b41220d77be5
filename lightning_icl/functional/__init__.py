"""Plain torch, no Lightning: usable from a notebook in one line."""
