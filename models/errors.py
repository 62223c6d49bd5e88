"""The base of errors whose text is meant for an administrator."""


class CannotStart(Exception):
    """Something that an administrator can mend keeps a part from working; the text says what, without secrets."""
