"""HTML pages about runs and about new cases."""
