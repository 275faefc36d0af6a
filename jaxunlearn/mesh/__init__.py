"""Devices and processes: where arrays lie, who runs, and what the compiler makes of a step."""
