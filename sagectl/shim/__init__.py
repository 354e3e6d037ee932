"""The shim: one small process per engine. It starts the engine on the daemon's word, writes its log,
keeps its tree of processes together and remembers its exit, whatever becomes of the daemon.

Runs in an interpreter of its own: the standard library alone, and nothing of ours.
"""
