"""Work: worker processes, which keep models loaded and can crash without affecting the node."""
