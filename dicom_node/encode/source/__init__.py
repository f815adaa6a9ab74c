"""What results take from the source series: identity byte for byte, valid attributes, and plane positions."""
