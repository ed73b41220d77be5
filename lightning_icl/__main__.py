"""python -m lightning_icl: the same as lightning-icl."""

from lightning_icl.cli import main

main()
