"""A report on a run or a sweep: one HTML file that needs no other, for a supervisor, a reviewer or a drawer."""
