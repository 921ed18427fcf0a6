"""From predictions to scores, statistics, a table for the terminal and an HTML page."""
