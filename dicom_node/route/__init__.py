"""Route: rules on the whole series decide what runs; every decision records its reason."""
