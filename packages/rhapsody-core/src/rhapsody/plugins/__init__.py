"""Plugins: what they can declare, observe and decide (`specs`), and how they are run (`manager`).

Backend classes are no business of this package; see `rhapsody.backends`.
"""
