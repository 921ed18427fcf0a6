"""Residual-SUMNet for ischaemic stroke lesions in MRI; import the modules you need."""

__version__ = "0.3.0"
