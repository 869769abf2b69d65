"""What processes report of themselves, and who shows it."""
