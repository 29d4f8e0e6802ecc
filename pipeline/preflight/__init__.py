"""All that can be known of a run before any weights are read: problems, memory, time, disk."""
