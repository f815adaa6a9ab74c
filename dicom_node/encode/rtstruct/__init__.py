"""RT Structure Sets (planar contours) and their read-back check."""
