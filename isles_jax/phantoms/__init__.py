"""Digital phantoms of stroke patients, written as data sets."""
