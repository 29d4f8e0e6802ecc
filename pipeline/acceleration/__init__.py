"""What a run may do to be faster: other attention kernels, and steps whose blocks are not run."""
