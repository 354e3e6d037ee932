"""Adapters to the world outside, one a file."""
