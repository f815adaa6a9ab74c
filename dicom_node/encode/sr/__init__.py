"""TID 1500 reports (measurements, and notices that a series was not processed) and their read-back check."""
