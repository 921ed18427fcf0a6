"""Residual-SUMNet for ischaemic stroke lesions in MRI; import the modules you need."""

__version__ = "0.2.0"
