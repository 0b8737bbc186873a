"""Observers that Rhapsody provides: plugins on the same hooks as those of third parties."""
