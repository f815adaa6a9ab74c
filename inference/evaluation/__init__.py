"""How good a segmentation is: Dice and normalised surface Dice per structure, and whether sides were mixed up."""
