"""What a backend may use of the core beside the interface in `rhapsody.backends.base`.

Each module is for one thing that backends have in common; import what you need from it.
"""
