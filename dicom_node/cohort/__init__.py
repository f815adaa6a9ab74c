"""Cohorts: series pulled from an archive through the node's queue, and their measurements in one Parquet data set."""
