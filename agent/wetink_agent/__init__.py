"""The agent: write-protects the memory of processes and streams what gets dirty."""
