"""One node: the supervisor, its children and what they share."""
