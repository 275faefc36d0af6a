"""What a user may give: names of modules, numbers in their ranges, the fields of a config."""
