"""The backend classes under the import paths that existing programs use.

Each module is an alias. No more will be added; create third-party backends with
`rhapsody.get_backend`.
"""
