"""What a site shares out among its jobs: GPUs, or anything that can be listed."""
