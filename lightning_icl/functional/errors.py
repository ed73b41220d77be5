"""The one error that is the user's to mend."""


class InputError(ValueError):
    """A value that cannot work; the message names it and says what would.

    The command line prints the message as one sentence, without a traceback.
    """
