"""Adapters to the machine: processes, sockets, files, the database. One a file."""
