"""The demo: sends a synthetic CT series from a PACS to the node and shows the results as a table and a picture."""
