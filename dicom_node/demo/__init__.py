"""The demonstration: a synthetic patient as a CT series, a PACS, the node, and the result in a table and a picture."""
