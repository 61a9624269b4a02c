"""A command as a user types it: what it answers, and how it refuses."""

from typer.testing import CliRunner


class Typed:
    """A program, or one command of it.

    Args:
        app: the program.
        *first: what comes before all arguments, such as the command.
    """

    def __init__(self, app, *first):
        self.app, self.first = app, first

    def run(self, *arguments):
        """Whatever it ends with."""
        return CliRunner().invoke(self.app, [str(one) for one in (*self.first, *arguments)])

    def succeeded(self, *arguments):
        """What it answers, when it must end well."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result

    def refused(self, *arguments) -> str:
        """The one line on stderr with which it must end, without "error: "; exit code 2."""
        result = self.run(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")
