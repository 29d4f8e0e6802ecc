"""Everything about files: which one is what, whether it is whole, and how it becomes a module."""
