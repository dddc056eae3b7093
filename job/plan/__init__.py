"""The plan: which files there are, in which order, and which shard each belongs to."""
