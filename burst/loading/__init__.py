"""Names of models -> models with their weights: one file a library, asked by `load_backbone`."""
