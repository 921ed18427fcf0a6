"""Data sets: cases read from folders of NIfTI files, their folds and their slices.

One case: `case`, `orientation`, `adc`, `resample`; `nifti` reads and writes it; `profile` gives its facts.
A folder of cases: `folder` says what lies in it; `table`, `isles`, `isles2022` and `nnunet` read one layout each;
`layouts` recognises which; `checks` compares labels with images.
A folder with any names: `patterns` finds the files of each case and writes their table; `templates` reads the names and
`proposal` makes patterns of them.
For the networks: `folds`, `grid`, `slices`. For the user: `oddities` and `survey` say what a data set is.
"""
