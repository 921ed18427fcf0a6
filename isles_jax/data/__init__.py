"""Data sets: cases read from folders of NIfTI files, their folds and their slices."""
