"""What is raised on purpose: a mistake in what a person gave, and the cure."""


class InputError(ValueError):
    """A file, key, argument or command cannot be used as it is; the message is one line that names the cure.

    Tools show it as that line. Anything else that is raised is a bug, here or in a person's own code, and keeps its
    traceback.
    """
