"""The collector: merges the dirty sets of all hosts, keeps them, and answers orchestrators."""
