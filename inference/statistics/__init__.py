"""Statistics of studies: bootstrap intervals, rank correlation, paired comparison, correction for multiple tests.

scipy and statsmodels are used where possible; our own code is the bootstrap over many columns with missing values at
once, for which calling scipy for each replicate takes hours. Columns are tested and resampled together, so that the
subjects drawn in a replicate are the same for each.
"""
