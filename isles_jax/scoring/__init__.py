"""From predictions to scores, statistics and the comparison of runs."""
