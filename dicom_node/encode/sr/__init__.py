"""TID 1500 reports: measurements, and notices of series that were not processed; and their read-back check."""
