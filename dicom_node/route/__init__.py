"""Route: rules over the whole series decide what runs; every decision keeps its reason."""
