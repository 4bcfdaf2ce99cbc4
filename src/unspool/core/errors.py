"""Errors made for people: what was wrong, which value, what would work.

Every error that a user can cause derives from :class:`UnspoolError`; the command line prints its message without a
traceback and the server turns it into a response. Anything else that escapes is a bug.
"""


class UnspoolError(Exception):
    """Base of every error that input, files, the network or the machine can cause."""


class InvalidInput(UnspoolError, ValueError):
    """A prompt, a setting or an option has a value that cannot be used."""


class UnknownMethod(UnspoolError, LookupError):
    """A slug that is not in the registry."""


class Incompatible(UnspoolError):
    """Parts that cannot be composed, or a model without a capability that a method needs. Names both."""


class WeightsError(UnspoolError):
    """A weights file is missing, damaged, or of a kind that cannot be read."""


class DownloadError(UnspoolError):
    """A model could not be fetched: no network, a refused request, a wrong checksum, or no room on the disk."""


class DeadEnd(UnspoolError):
    """A constraint has led a text to a place where no token is possible."""


class GrammarError(UnspoolError):
    """A grammar that cannot be used.

    Args:
        what: what is wrong, and what would work.
        where: the place in it: a line and column, or the path to a keyword of a JSON schema.
    """

    def __init__(self, what: str, where: str | None = None) -> None:
        super().__init__(f"{where}: {what}" if where else what)
        self.where = where
