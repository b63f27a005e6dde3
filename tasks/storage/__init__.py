"""Where results are kept: places, the store, leases."""
