"""The one exception that means "your input is wrong", as opposed to "this program is wrong"."""


class InputError(ValueError):
    """Bad input from the user: a missing or damaged file, a wrong rate, an unknown key, a mismatched codec.

    The message names the thing, its value, what was expected and what to do. The command line prints it as one line
    and exits with status 2; any other exception is a defect of this program and keeps its traceback.
    """
