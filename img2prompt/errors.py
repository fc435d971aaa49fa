"""The one error that users are meant to read."""


class UserError(ValueError):
    """Something the user gave cannot be used.

    The text names the file, row or value, says what is allowed, and what to do. Jobs print it
    without a traceback; every other exception is a mistake of ours and keeps its traceback.
    """
