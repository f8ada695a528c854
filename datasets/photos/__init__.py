"""Six annotated photos: see the README beside this file."""
