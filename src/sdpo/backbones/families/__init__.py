"""Pipeline families, one file each, and what several share."""
