"""What made the files that come with the package; not installed with it."""
