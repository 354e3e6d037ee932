"""completion: scripts for the shells; names of engines come from the daemon."""

from __future__ import annotations

import click

from sagectl.cli import exits
from sagectl.cli.session import Session, pass_session


@click.command("completion", short_help="The completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_session
def completion_verb(session: Session, shell: str) -> int:
    """Print the completion script of a shell. It completes names of engines too.

    \b
      bash:  sagectl completion bash > ~/.local/share/bash-completion/completions/sagectl
      zsh:   sagectl completion zsh > "${fpath[1]}/_sagectl"
      fish:  sagectl completion fish > ~/.config/fish/completions/sagectl.fish
    """
    from click.shell_completion import get_completion_class

    from sagectl.cli.main import sagectl

    completer = get_completion_class(shell)
    assert completer is not None
    session.out(completer(sagectl, {}, "sagectl", "_SAGECTL_COMPLETE").source())
    return exits.OK
