"""The age study of the paper over a table of measurements: correlations, trends, figures, percentiles."""
