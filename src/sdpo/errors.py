"""Errors that are the user's to mend: the command line shows them without a traceback and exits with code 2."""


class UserError(Exception):
    """Says what is wrong, where, and how to fix it."""


class RewardError(UserError):
    """A reward raised, or returned the wrong length, a wrong type, or values that are not finite."""


class DivergenceError(UserError):
    """A loss, gradient or log-probability stopped being finite."""


class LostProcessError(UserError):
    """Another process of the run has ended."""
