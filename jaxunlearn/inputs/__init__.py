"""What a user may give: names of modules, and numbers in their ranges."""
