"""Subcommands besides Lightning's own: what is done with checkpoints rather than with a trainer."""
