"""Statistics of studies: bootstrap intervals, rank correlation, paired comparison, correction for many tests.

scipy and statsmodels do what they can do; our own code is the bootstrap over many columns with missing values at once,
where calling scipy for each replicate takes hours. Columns are tested and resampled together, so that the subjects
drawn in a replicate are the same for each.
"""
