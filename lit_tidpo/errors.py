"""Errors that a user can mend."""


class InputError(ValueError):
    """A setting or a piece of data cannot be used.

    The message names the value, what was expected and what to do. The command line prints it as one
    line, without a traceback.
    """


class PluginError(InputError):
    """A plugin is unknown, broken, duplicated or of the wrong type."""


class NonFiniteError(InputError):
    """A supervised value became NaN or infinite."""
