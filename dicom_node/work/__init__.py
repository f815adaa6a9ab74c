"""Work: the worker process that keeps a model warm and may crash alone."""
