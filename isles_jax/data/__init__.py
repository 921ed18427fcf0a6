"""Reading: cases from NIfTI folders of several layouts, folds, and slices; also the phantom."""
