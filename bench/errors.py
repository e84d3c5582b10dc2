"""Errors that a user can mend."""


class InputError(Exception):
    """Bad input: the message names the file, the key or the argument, and what is allowed. Exit code 2."""
