"""Observers that come with Rhapsody. They implement the same hooks as third-party plugins.

Observers that engine options enable are created in `rhapsody.observers.builtin`.
"""
