"""The error that users are meant to read."""


class UserError(ValueError):
    """A value, file or cluster that the user gave cannot be used.

    The message names the file, row or value, the allowed range, and what to do. Jobs print it
    without a traceback; any other exception is a bug and keeps its traceback.
    """
