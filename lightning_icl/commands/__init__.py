"""Subcommands besides Lightning's own: what is done with checkpoints rather than with a trainer.

Each is a function whose signature is its options and whose docstring is its help; lightning_icl.cli.COMMANDS names it.
"""
