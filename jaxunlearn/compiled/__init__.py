"""What the compiler makes of a step: its cost here, on TPUs that are not here, and its traffic."""
