"""Trains models with nnU-Net's own planner, preprocessor and trainer, and installs them as packages."""
