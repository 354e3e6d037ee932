"""sagectl: systemd for AI engines on one GPU machine."""

__version__ = "0.1.0"
