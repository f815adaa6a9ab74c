"""The age study of the paper over a table of measurements: who is in it, rank correlations, trends, figures."""
