"""What a run measured, where it lies, and how it is read again: rows with their context, in one file of lines."""
