"""Scores a segmentation: Dice and normalised surface Dice per structure, and mix-ups of left and right."""
