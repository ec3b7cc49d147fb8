"""Measuring what is served: load, figures, quality, comparison. Pure, but for the load loop, which is given its clock."""
