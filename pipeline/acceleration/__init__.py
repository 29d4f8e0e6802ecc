"""Ways to make a run faster: attention kernels, compiled blocks, step caches, guidance in some of the steps."""
