"""What results take from the source series: identity byte for byte, valid attributes, and the place of its planes."""
