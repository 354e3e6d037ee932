"""Decisions. No I/O, no clock, no asyncio, no logging: values in, values out."""
