"""Sections of the studies of zero modes, a file a study."""
