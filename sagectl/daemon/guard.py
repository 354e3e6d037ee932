"""Sees to it that clients and later daemons find this one, also where somebody removes its files."""

from __future__ import annotations

import logging
from typing import Protocol

from sagectl.config.paths import Paths, prepare
from sagectl.errors import SagectlError
from sagectl.system.journal import Journal
from sagectl.system.processes import Processes

log = logging.getLogger("sagectld")


class Reachable(Protocol):
    """The API's server, as far as it can be found."""

    def reachable(self) -> bool:
        """The socket is where clients look for it."""
        ...

    async def reopen(self) -> None:
        """Make the socket again. Raises DaemonRefusal."""
        ...


class Guard:
    """Of the runtime directory."""

    def __init__(self, paths: Paths, journal: Journal, api: Reachable, processes: Processes) -> None:
        self._paths, self._journal = paths, journal
        self._api, self._processes = api, processes
        self._trouble = ""

    async def look(self) -> None:
        """Make the directory, the socket and the shims' files again, if the socket is gone."""
        if self._api.reachable():
            return
        socket = self._paths.socket
        try:
            prepare(self._paths)
            await self._api.reopen()
        except (SagectlError, OSError) as error:
            text = f"{socket} was removed and cannot be made again: {error}"
            if text != self._trouble:
                self._trouble = text
                log.error(text)
                self._journal.record(None, None, "socket-lost", text, "error")
            return
        self._trouble = ""
        self._processes.renew()
        text = f"somebody removed {socket}; it is there again"
        log.warning(text)
        self._journal.record(None, None, "socket-renewed", text, "warning")
