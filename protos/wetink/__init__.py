"""What agent, collector and client share: the contract, page sets, names and statuses."""
