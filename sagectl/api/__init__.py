"""The control API: HTTP over a Unix socket, translated into calls of `sagectl.daemon.control`."""
