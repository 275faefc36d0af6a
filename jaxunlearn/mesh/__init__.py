"""Devices and processes: where arrays lie, who runs, and a profile of it."""
