"""Cohorts: series are pulled from an archive and run in the node's queue; measurements go to one Parquet data set."""
