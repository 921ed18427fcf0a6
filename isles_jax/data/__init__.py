"""Data sets: cases read from folders of NIfTI files, their folds and slices, and the phantom."""
