"""What the commands share: the project's configs by name, help, and the list of what there is."""
