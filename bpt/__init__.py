"""Prompt tuning of Vision Transformers, with and without whitening."""
