"""The one exception that users see: a plain sentence, exit status 2, never a traceback."""


class PocketdraftError(Exception):
    """Bad input. The message names the offender, the two values that differ and the mend."""
