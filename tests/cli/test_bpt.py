import importlib.metadata

from typer.testing import CliRunner

from cli.bpt import app


def test_the_version_is_told():
    version = importlib.metadata.version("attention-burstiness")
    assert CliRunner().invoke(app, ["--version"]).stdout == f"bpt {version}\n"


def test_without_a_command_it_explains_itself():
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert "Prompt tuning" in result.stdout
