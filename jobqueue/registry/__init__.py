"""What is known of experiments, leases, live logs and workers."""
