"""The long-lived process: decides with `core`, acts through `system`."""
