"""What looks into a trained transformer: functions of a Transformer and prompts, without Lightning.

Each returns a named result; the callbacks say when to measure, and log and draw what is found.
"""
