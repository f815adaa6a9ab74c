"""App: builds objects from settings, runs the processes of the node, and checks the configuration."""
