"""Observers that Rhapsody provides: plugins on the same hooks as those of third parties.

Observers that engine options enable are created in `rhapsody.observers.builtin`.
"""
