"""A local page on which a build's events and rows are read, and marked when they are wrong."""
