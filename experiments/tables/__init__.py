"""Settings of the tables that scripts train."""
