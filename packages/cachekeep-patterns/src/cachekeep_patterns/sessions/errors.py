"""What can go wrong with a session, as few exceptions."""


class SessionError(Exception):
    """Base of every error that the session store raises itself."""


class SessionUnavailable(SessionError):
    """The cache could not be reached before the deadline; the outcome of the last call is unknown."""


class SessionConflict(SessionError):
    """Compare-and-set: somebody else saved this session since it was loaded. Nothing was written."""


class SessionTooLarge(SessionError):
    """The save would make the session larger than the policy allows. Nothing was written.

    `size_bytes` is what the session would have become, `limit_bytes` what is allowed.
    """

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"session would be {size_bytes} bytes; the limit is {limit_bytes}")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class SessionNotLoaded(SessionError):
    """A lazy session was used before it was loaded."""


class SessionCannotEncode(SessionError, TypeError):
    """A value in the session is not plain data."""


class SessionCannotDecode(SessionError):
    """A stored value was written by a codec that is not known here, or is damaged."""


class SessionHeadersSent(SessionError):
    """A new session began after the response's headers had gone; its cookie cannot be sent any more."""
