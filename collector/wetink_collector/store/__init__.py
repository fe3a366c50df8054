"""What the collector keeps: one interface, and its implementations."""
