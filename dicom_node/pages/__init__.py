"""The pages on which results of studies are shown: one style and one statement for all, and figures as SVG."""
